"""Items in batches: how long one may be, and which go together."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel

from lowbit.errors import UsageError
from lowbit.mode import positions


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
    if wanted < 1:
        raise UsageError(f"max_length {wanted} leaves no token: at least 1 is needed")
    if room is not None and wanted > room:
        raise UsageError(f"max_length {wanted} is longer than the model's {room} positions")
    return wanted


def check_batch_size(size: int) -> None:
    """Raises UsageError."""
    if size < 1:
        raise UsageError(f"batch size {size} is none: at least 1 is needed")


def check_padding(tokenizer: Any, size: int) -> None:
    """Raises UsageError where batches of more than one item cannot be padded."""
    if size > 1 and getattr(tokenizer, "pad_token_id", None) is None:
        raise UsageError(f"the tokenizer has no padding token: batch size 1, not {size}, is needed")
