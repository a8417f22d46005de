"""Where matrices that come and go lie in one memory.

Matrices that are needed at the same time lie beside each other, others may lie in the same place.
Wide ones are placed first, each as low as it can be (greedy by size: Pisarchyk and Lee 2020,
"Efficient memory management for deep neural net inference").
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16  # columns of float32: lines of a cache


@dataclass(frozen=True)
class Need:
    """A matrix of so many columns, from the operation that writes it to the last that reads it."""

    matrix: int
    columns: int
    begins: int
    ends: int


def aligned(columns: int) -> int:
    return -(-columns // ALIGNMENT) * ALIGNMENT


def allocated(needs: Sequence[Need]) -> dict[int, int]:
    """How many columns of memory lie before each matrix."""
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
