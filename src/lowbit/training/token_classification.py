"""Token classification: the first token of each word has its label (Devlin et al. 2019, section
5.3)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from lowbit.data import tagged
from lowbit.data.word_tokens import WordTokens, word_tokens
from lowbit.errors import InputError
from lowbit.evaluation.tasks.token_classification import TokenClassification
from lowbit.evaluation.teacher_forcing import IGNORED
from lowbit.training.lesson import (
    Example,
    Lesson,
    Material,
    folder_of,
    load_with_head,
    padded,
)


def teach(material: Material) -> Lesson:
    """data: a folder with train* and dev*. Raises UsageError, InputError."""
    data = folder_of(material, "token-classification", "train* and dev*")
    train = tagged.read(data, "train")
    names = train.label_set
    if len(names) == 1:
        raise InputError(f"{train.source} has one label, {names[0]}: there is nothing to learn")
    loaded = load_with_head(
        AutoModelForTokenClassification,
        material,
        names,
        trained_for={"task": "token-classification"},
    )
    numbers = loaded.model.config.label2id
    tokens = word_tokens(material.tokenizer, train.words, material.max_length)
    examples: list[Example] = []
    for row, (places, labels) in enumerate(zip(tokens.first, train.labels, strict=True)):
        targets = [IGNORED] * tokens.lengths[row]
        for place, label in zip(places, labels, strict=True):
            if place is not None:
                targets[place] = numbers[label]
        # A mean over no label is no number.
        if any(place is not None for place in places):
            examples.append({**{k: v[row] for k, v in tokens.inputs.items()}, "labels": targets})
    return Lesson(
        loaded.model,
        material.tokenizer,
        examples,
        collated(material.tokenizer),
        TokenClassification(data, "dev", max_length=material.max_length),
        new=loaded.new,
        other_labels=loaded.other_labels,
        notes=tuple(_without_token(tokens, train.source)),
        accuracy=True,
    )


def _without_token(tokens: WordTokens, source: str) -> Iterator[str]:
    """What is said of words that are not learned."""
    if tokens.cut:
        words = sum(map(len, tokens.first))
        yield (
            f"{tokens.cut} of {words} words of {source} are not learned: they are behind the"
            " longest length (--max-length), or the tokenizer drops their characters"
        )


def collated(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[list[Example]], dict[str, Tensor]]:
    """Pads examples and, on the same side, their labels."""
    pad = padded(tokenizer)

    def collate(examples: list[Example]) -> dict[str, Tensor]:
        batch = pad([{k: v for k, v in e.items() if k != "labels"} for e in examples])
        left = tokenizer.padding_side == "left"
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, example in enumerate(examples):
            known = torch.tensor(example["labels"])
            place = slice(-len(known), None) if left else slice(len(known))
            labels[row, place] = known
        return {**batch, "labels": labels}

    return collate
