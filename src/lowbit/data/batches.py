"""Items in batches: how long one may be, and which go together."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel

from lowbit.errors import UsageError, check_at_least
from lowbit.nn.eval_mode import positions


class Texts:
    """Rows of one text or two, tokenized together; what is longer than `most` tokens is cut."""

    def __init__(self, rows: Sequence[Sequence[str]], tokenizer: Any, most: int | None) -> None:
        self.rows, self.tokenizer, self.most = rows, tokenizer, most
        self.lengths = [len(ids) for ids in tokenizer(*columns(rows), verbose=False).input_ids]

    @property
    def truncated(self) -> int:
        """How many rows are cut."""
        return 0 if self.most is None else sum(length > self.most for length in self.lengths)

    def batches(self, size: int) -> Iterator[tuple[list[int], Any]]:
        """The indices of rows of about equal lengths, and the model's inputs for them."""
        for batch in by_length(self.lengths, size):
            yield (
                batch,
                self.tokenizer(
                    *columns([self.rows[index] for index in batch]),
                    truncation=self.most is not None,
                    max_length=self.most,
                    padding=len(batch) > 1,
                    return_tensors="pt",
                ),
            )


def columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The first texts of the rows, and where there are two, the second ones: a tokenizer's
    arguments."""
    return [list(texts) for texts in zip(*rows, strict=True)]


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """The indices of items in batches of about equal lengths, the longest first: what does not fit
    in memory fails at once, and the time left is not underestimated."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def longest(model: PreTrainedModel, tokenizer: Any, wanted: int | None) -> int | None:
    """The most tokens an item may have: `wanted`, else all that both the model and its tokenizer
    declare; None where neither declares any. Raises UsageError where more are wanted than the
    model has positions for; a tokenizer's limit is only its advice."""
    room = positions(model)
    if wanted is None:
        declared = [room, getattr(tokenizer, "model_max_length", None)]
        # Tokenizers that know no limit declare 10^30.
        return min((n for n in declared if n is not None and n < 1 << 31), default=None)
    check_at_least("max_length", wanted, 1)
    if room is not None and wanted > room:
        raise UsageError(
            f"max_length {wanted} is longer than the model's {room} positions: give at most {room}"
            " (--max-length)"
        )
    return wanted


def check_batch_size(size: int) -> None:
    """Raises UsageError."""
    check_at_least("batch size", size, 1)


def check_padding(tokenizer: Any, size: int) -> None:
    """Raises UsageError where batches of more than one item cannot be padded."""
    if size > 1 and getattr(tokenizer, "pad_token_id", None) is None:
        raise UsageError(
            f"the tokenizer has no padding token, which a batch of {size} needs: set pad_token in"
            " tokenizer_config.json"
        )
