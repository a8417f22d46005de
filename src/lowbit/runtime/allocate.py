"""Allocate temporary matrices in one buffer.

Matrices that are needed at the same time do not overlap; others may share memory. The widest
matrices come first, each at the lowest free offset (greedy by size: Pisarchyk and Lee 2020,
"Efficient memory management for deep neural net inference").
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16  # columns of float32: one cache line


@dataclass(frozen=True)
class Need:
    """A matrix: its columns, the operation that writes it, and the last operation that reads it."""

    matrix: int
    columns: int
    begins: int
    ends: int


def aligned(columns: int) -> int:
    return -(-columns // ALIGNMENT) * ALIGNMENT


def allocated(needs: Sequence[Need]) -> dict[int, int]:
    """The offset of each matrix, in columns."""
    firsts: dict[int, int] = {}
    placed: list[tuple[Need, int]] = []
    for need in sorted(needs, key=lambda need: -need.columns):
        first = 0
        for other, at in sorted(placed, key=lambda pair: pair[1]):
            together = other.begins <= need.ends and need.begins <= other.ends
            if together and at < first + aligned(need.columns):
                first = max(first, at + aligned(other.columns))
        firsts[need.matrix] = first
        placed.append((need, first))
    return firsts
