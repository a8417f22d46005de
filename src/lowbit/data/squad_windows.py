"""Questions and their contexts as a model reads them (Devlin et al. 2019, section 4.2).

A context too long for one sequence is split into windows that overlap by `stride` tokens:

    [question] [context tokens 0 … r−1], [question] [context tokens r−stride … 2r−stride−1], …
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.data.squad import Question
from lowbit.errors import UsageError


@dataclass(frozen=True)
class QuestionWindows:
    """What the model reads. `inputs`: the tokenizer's columns, one list of ids a window;
    `questions`: which question a window is of; `spans`: the characters of the context that each
    token stands for, None for tokens that are not of the context. `cut_questions`: how many
    questions were shortened to leave room."""

    inputs: dict[str, list[list[int]]]
    questions: list[int]
    spans: list[list[tuple[int, int] | None]]
    cut_questions: int


def split(
    tokenizer: Any, questions: Sequence[Question], max_length: int, stride: int
) -> QuestionWindows:
    """All windows of all questions. Raises UsageError where max_length leaves questions no room."""
    room = question_room(tokenizer, max_length, stride)
    # Some of SQuAD's questions start with many blanks, which only take room.
    texts = [question.question.lstrip() for question in questions]
    alone = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = 0
    for index, places in enumerate(alone.offset_mapping):
        if len(places) > room:
            texts[index] = texts[index][: places[room - 1][1]]
            cut += 1
    encoded = tokenizer(
        texts,
        [question.context for question in questions],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners = encoded.pop("overflow_to_sample_mapping")
    offsets = encoded.pop("offset_mapping")
    spans = [
        [
            tuple(place) if side == 1 and place[0] < place[1] else None
            for side, place in zip(encoded.sequence_ids(row), places, strict=True)
        ]
        for row, places in enumerate(offsets)
    ]
    return QuestionWindows(dict(encoded), owners, spans, cut)


def usual_stride(max_length: int) -> int:
    """By how many tokens windows overlap if nothing is said: a third, 128 of 384."""
    return max_length // 3


def question_room(tokenizer: Any, max_length: int, stride: int) -> int:
    """The tokens a question may have, so that each window brings at least `stride` new ones of
    the context, and one where windows do not overlap. Raises UsageError where that is none."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room: int = max_length - special - stride - max(stride, 1)
    if room < 1:
        most = (max_length - special - 1) // 2
        remedy = f"at most --stride {most} fits" if most > 0 else "a longer --max-length is needed"
        raise UsageError(
            f"windows of {max_length} tokens (--max-length) that overlap by {stride} (--stride)"
            f" leave no tokens for a question: {remedy}"
        )
    return room
