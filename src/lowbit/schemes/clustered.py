"""Binary codes of a table whose rows are in the order of frequency: fewer bits for rarer rows.

    cluster i = 0 … c − 1    rows ∝ rⁱ, in b − i bits                    the most frequent first

for embeddings of words (Chung et al. 2020, "Extremely low bit transformer quantization for
on-device neural machine translation"). With v rows, cluster i ends before row
⌊v · (r⁰ + … + rⁱ) / (r⁰ + … + rᶜ⁻¹) + ½⌋, or as near as it can where every cluster has a row. The
rows must be in that order already: nothing about it is stored.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from math import floor
from typing import ClassVar

from lowbit.errors import UsageError
from lowbit.schemes.binary import Binary
from lowbit.schemes.stacked import StackedScheme

LEAST_RATIO, MOST_RATIO = 1 / 64, 64.0


@dataclass(frozen=True)
class Clustered(StackedScheme):
    """Binary codes with fewer bits for rarer rows, for embeddings sorted by frequency.

    In recipes and config.json the options of `base` stand beside the others. Source: Chung et al.
    2020.

    Attributes:
        base: The scheme of the most frequent cluster. Each next cluster has one bit less.
        clusters: How many clusters.
        ratio: Rows of a cluster over rows of the one before.

    Raises:
        UsageError: for options out of range.
    """

    name: ClassVar[str] = "clustered"
    base: Binary = Binary(4)
    clusters: int = 4
    ratio: float | int = 1

    def __post_init__(self) -> None:
        most = self.base.bits
        if not 1 <= self.clusters <= most:
            raise UsageError(
                f"{self.clusters} clusters are outside 1 … {most}: each has one bit less than the"
                f" one before it, and the first has {most}"
            )
        if not LEAST_RATIO <= self.ratio <= MOST_RATIO:
            raise UsageError(f"ratio {self.ratio} is outside {LEAST_RATIO} … {MOST_RATIO}")

    @property
    def parts(self) -> tuple[Binary, ...]:
        """The scheme of each cluster."""
        return tuple(replace(self.base, bits=self.base.bits - i) for i in range(self.clusters))

    def part_rows(self, rows: int) -> list[int]:
        """The rows of each cluster. Raises UsageError for fewer rows than clusters."""
        return cluster_sizes(rows, self.clusters, self.ratio)


def cluster_sizes(rows: int, clusters: int, ratio: float | int) -> list[int]:
    """How many of `rows` each cluster has: in exact numbers, halves up. Raises UsageError for fewer
    rows than clusters."""
    if rows < clusters:
        raise UsageError(f"{rows} rows are too few for {clusters} clusters")
    sums = list(accumulate(Fraction(ratio) ** i for i in range(clusters)))
    ends = [0]
    for i, total in enumerate(sums):
        wanted = floor(rows * total / sums[-1] + Fraction(1, 2))
        ends.append(min(max(wanted, ends[-1] + 1), rows - (clusters - 1 - i)))
    return [after - before for before, after in pairwise(ends)]
