"""Whether a table in clusters by frequency is in that order: its tokens in the training data."""

from collections.abc import Sequence

import numpy as np

from lowbit.qat.modules import FakeQuantized
from lowbit.qat.stacked_codes import StackedCodes
from lowbit.training.lesson import Lesson


def bits_read(lesson: Lesson) -> tuple[str, ...]:
    """For an input embedding in clusters a sentence on how many tokens of the examples, sources and
    targets, have how many bits, and how many would have were its rows sorted by their counts."""
    table = lesson.model.get_input_embeddings()
    codes = table.weight_quantizer if isinstance(table, FakeQuantized) else None
    if not isinstance(codes, StackedCodes):
        return ()
    counts = _counts(lesson, sum(codes.sizes))
    bits = ", ".join(str(part.bits) for part in codes.scheme.parts)
    return (
        f"tokens of the training data whose row has {bits} bits: {_shares(counts, codes.sizes)} %;"
        " were the rows sorted by frequency:"
        f" {_shares(np.sort(counts)[::-1], codes.sizes)} %",
    )


def _counts(lesson: Lesson, rows: int) -> np.ndarray:
    """How often each of the rows is read."""
    sides = [e[side] for e in lesson.examples for side in ("input_ids", "labels") if side in e]
    # The label of a text that is classified is no token.
    ids = np.concatenate([np.zeros(0, np.int64), *(np.ravel(s) for s in sides if np.ndim(s))])
    return np.bincount(ids[ids >= 0], minlength=rows)


def _shares(counts: np.ndarray, sizes: Sequence[int]) -> str:
    """Of each cluster, in percent."""
    starts = np.cumsum([0, *sizes[:-1]])
    found = np.add.reduceat(counts, starts) / max(1, counts.sum())
    return ", ".join(f"{100 * share:.2f}" for share in found)
