"""What all pipelines share. Their callers decide between the steps which items go together."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowbit import fallbacks
from lowbit.data.batches import columns, longest
from lowbit.data.lines import MOST_CHARACTERS
from lowbit.errors import InputError, UsageError, check_at_least
from lowbit.kernels import native
from lowbit.runtime.compiled import compile

Row = tuple[str, ...]  # one text, or two that are read together

NOT_FINITE = "the model gives NaN or ∞{}: its weights are damaged, or a product overflows"


@dataclass(frozen=True, slots=True)
class Item:
    """A row as a model reads it.

    length: of its tokens. cut: whether the row had more, which are not read.
    """

    content: Any
    length: int
    cut: bool


class Pipeline(ABC):
    """A model with its tokenizer, for one kind of result.

    Attributes:
        kind: What it does, in one word.
        pairs: Whether a row may have two texts.
    """

    kind: ClassVar[str]
    pairs: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        if tokenizer is None:
            raise UsageError("the folder of the model has no tokenizer, which texts need")
        self.model, self.tokenizer = model.eval(), tokenizer

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> list[Item]:
        """The rows as items, in order. May be called by any thread."""

    def run(self, items: Sequence[Item], rows: Sequence[int]) -> Sequence[Any] | np.ndarray:
        """A result for each item, in order: one batch. Every item has a token.

        rows: the numbers of the items for error messages. Raises InputError if a result has NaN or
        an infinite value.
        """
        results = self.compute(items)
        if isinstance(results, np.ndarray):
            odd = ~np.isfinite(results).all(1)
            if odd.any():
                raise InputError(NOT_FINITE.format(f" for row {rows[odd.argmax()]}"))
        return results

    @abstractmethod
    def compute(self, items: Sequence[Item]) -> Sequence[Any] | np.ndarray:
        """The results of `run`, unchecked."""

    def __call__(self, rows: Sequence[Row], tokens: int) -> list[Any]:
        """A result for each row, in order; None for a row without tokens.

        tokens: of a batch, with padding.
        """
        items = self.encode(rows)
        results: list[Any] = [None] * len(items)
        for batch in batches([item.length for item in items], tokens):
            found = self.run([items[index] for index in batch], batch)
            for index, result in zip(batch, found, strict=True):
                results[index] = result
        return results


class TokenPipeline(Pipeline):
    """One whose items are token ids, and whose batches are padded.

    most: tokens of an item; longer rows are cut. None if nothing says so.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, max_length: int | None = None
    ) -> None:
        super().__init__(model, tokenizer)
        self.most = longest(model, tokenizer, max_length)

    def encode(self, rows: Sequence[Row], **options: Any) -> list[Item]:
        if not rows:
            return []
        texts = [tuple(text[:MOST_CHARACTERS] for text in row) for row in rows]
        encoded = self.tokenizer(*columns(texts), verbose=False, **options)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        long = [] if self.most is None else [i for i, n in enumerate(lengths) if n > self.most]
        items = [
            Item({name: encoded[name][i] for name in encoded}, length, False)
            for i, length in enumerate(lengths)
        ]
        if long:
            options |= {"truncation": True, "max_length": self.most}
            shorter = self.tokenizer(*columns([texts[i] for i in long]), **options)
            for place, i in enumerate(long):
                content = {name: shorter[name][place] for name in shorter}
                items[i] = Item(content, len(content["input_ids"]), True)
        return items

    def padded(self, items: Sequence[Item], side: str) -> dict[str, Tensor]:
        """The arguments of a model: int64 [items, longest] each; padding is on this `side`."""
        size = max(item.length for item in items)
        fills = {
            "input_ids": self.tokenizer.pad_token_id or 0,
            "token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0),
        }
        found = {}
        for name in items[0].content:
            fill = fills.get(name, 0)
            rows = [
                [fill] * (size - item.length) + item.content[name]
                if side == "left"
                else item.content[name] + [fill] * (size - item.length)
                for item in items
            ]
            found[name] = torch.tensor(rows)
        return found


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """The indices of items in batches of about equal lengths, the longest first. A batch has at
    most so many `tokens` with padding, or one item. Items without tokens are in none."""
    check_at_least("tokens of a batch", tokens, 1)
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size


def accelerated(model: PreTrainedModel) -> PreTrainedModel:
    """The model as a native program, where there is native code."""
    if not native.available():
        fallbacks.note(model, f"The model is not run as a program: {native.reason()}.")
        return model
    return compile(model)
