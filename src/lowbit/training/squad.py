"""SQuAD: the first and the last token of the answer, or [CLS] twice where a window has none
(Devlin et al. 2019, section 4.2)."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from lowbit.data import squad, squad_windows
from lowbit.data.squad_windows import QuestionWindows
from lowbit.evaluation.tasks.squad import Squad
from lowbit.training.lesson import (
    Example,
    Lesson,
    Material,
    folder_of,
    load_with_head,
    padded,
)


def teach(material: Material) -> Lesson:
    """data: a folder with train*.json and dev*.json. Raises UsageError, InputError."""
    data = folder_of(material, "squad", "train*.json and dev*.json")
    score = Squad(data, "dev", material.max_length, material.stride)
    train = squad.read(data, "train")
    train.check_answers()
    questions = train.questions
    windows = squad_windows.split(material.tokenizer, questions, material.max_length, score.overlap)
    examples: list[Example] = []
    for row, owner in enumerate(windows.questions):
        answer = questions[owner].answers[0]
        first, last = answer_tokens(windows, row, answer.start, answer.start + len(answer.text))
        examples.append(
            {
                **{key: values[row] for key, values in windows.inputs.items()},
                "start_positions": first,
                "end_positions": last,
            }
        )
    loaded = load_with_head(AutoModelForQuestionAnswering, material, trained_for={"task": "squad"})
    return Lesson(
        loaded.model,
        material.tokenizer,
        examples,
        collated(material.tokenizer),
        score,
        new=loaded.new,
        targets={"start_positions": "start_logits", "end_positions": "end_logits"},
    )


def collated(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[list[Example]], dict[str, Tensor]]:
    """Pads examples; where padding comes first, the tokens of answers come later."""
    pad = padded(tokenizer)

    def collate(examples: list[Example]) -> dict[str, Tensor]:
        batch = pad(examples)
        if tokenizer.padding_side == "left":
            longest = batch["input_ids"].shape[1]
            padding = torch.tensor([longest - len(example["input_ids"]) for example in examples])
            for name in ("start_positions", "end_positions"):
                batch[name] = batch[name] + padding
        return batch

    return collate


def answer_tokens(windows: QuestionWindows, row: int, start: int, end: int) -> tuple[int, int]:
    """Tokens of window `row` that hold characters start … end − 1 of the context; (0, 0) unless
    it holds all of them."""
    inside = [
        token
        for token, span in enumerate(windows.spans[row])
        if span is not None and span[0] < end and span[1] > start
    ]
    if not inside:
        return 0, 0
    first, last = windows.spans[row][inside[0]], windows.spans[row][inside[-1]]
    assert first is not None and last is not None
    return (inside[0], inside[-1]) if first[0] <= start and end <= last[1] else (0, 0)
