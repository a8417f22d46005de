"""Token classification: the first token of each word has its label (Devlin et al. 2019, section
5.3)."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from lowbit.data import tagged
from lowbit.data.word_tokens import word_tokens
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.forced import IGNORED
from lowbit.evaluation.tasks.token_classification import TokenClassification
from lowbit.training.lesson import (
    Example,
    Lesson,
    Material,
    check_folder,
    load_with_head,
    padded,
    some,
)


def teach(material: Material) -> Lesson:
    """data: a folder with train* and dev*. Raises UsageError, InputError."""
    if material.data is None:
        raise UsageError("task token-classification needs --data: a folder with train* and dev*")
    check_folder(material.data, "train* and dev*")
    train = tagged.read(material.data, "train")
    names = train.label_set
    if len(names) == 1:
        raise InputError(f"{train.source} has one label, {names[0]}: there is nothing to learn")
    numbers = {name: number for number, name in enumerate(names)}
    tokens = word_tokens(material.tokenizer, train.words, material.max_length)
    examples: list[Example] = []
    for row, (places, labels) in enumerate(zip(tokens.first, train.labels, strict=True)):
        targets = [IGNORED] * tokens.lengths[row]
        for place, label in zip(places, labels, strict=True):
            if place is not None:
                targets[place] = numbers[label]
        examples.append({**{k: v[row] for k, v in tokens.inputs.items()}, "labels": targets})
    model, new = load_with_head(
        AutoModelForTokenClassification,
        material,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id=numbers,
    )
    return Lesson(
        model,
        material.tokenizer,
        some(examples, train.source),
        collated(material.tokenizer),
        TokenClassification(material.data, "dev", max_length=material.max_length),
        new=new,
        accuracy=True,
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
