"""Binary codes for an embedding with rows sorted by frequency: fewer bits for rarer rows.

    cluster i = 0 … c − 1    rows ∝ rⁱ, in b − i bits                    the most frequent first

for embeddings of words (Chung et al. 2020, "Extremely low bit transformer quantization for
on-device neural machine translation"). With v rows, cluster i ends before row
⌊v · (r⁰ + … + rⁱ) / (r⁰ + … + rᶜ⁻¹) + ½⌋, or as near as possible if each cluster is to have a row.
The rows must already be sorted, most frequent first: no order is stored.
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

    The rows must be sorted, most frequent first. Recipes and config.json list the options of `base`
    next to the others. Source: Chung et al. 2020, "Extremely low bit transformer quantization for
    on-device neural machine translation".

    Attributes:
        base: The scheme of the most frequent cluster. Each next cluster has one bit less.
        clusters: The number of clusters, 1 … `base.bits`.
        ratio: The size of a cluster divided by the size of the previous one, 1/64 … 64.

    Raises:
        UsageError: if an option is out of range.
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
        """The number of rows of each cluster. Raises UsageError if rows < clusters."""
        return cluster_sizes(rows, self.clusters, self.ratio)


def cluster_sizes(rows: int, clusters: int, ratio: float | int) -> list[int]:
    """The number of rows of each cluster, in exact arithmetic, halves rounded up. Raises UsageError
    if rows < clusters."""
    if rows < clusters:
        raise UsageError(f"{rows} rows are too few for {clusters} clusters")
    sums = list(accumulate(Fraction(ratio) ** i for i in range(clusters)))
    ends = [0]
    for i, total in enumerate(sums):
        wanted = floor(rows * total / sums[-1] + Fraction(1, 2))
        ends.append(min(max(wanted, ends[-1] + 1), rows - (clusters - 1 - i)))
    return [after - before for before, after in pairwise(ends)]
