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

from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import Granularity, QTensor, StackedLayout
from lowbit.schemes.binary import Binary
from lowbit.schemes.scheme import Scheme

LEAST_RATIO, MOST_RATIO = 1 / 64, 64.0


@dataclass(frozen=True)
class Clustered(Scheme):
    """`base` is the scheme of the most frequent cluster; each that follows has one bit less. In
    recipes and config.json the options of `base` stand beside the others. Raises UsageError for
    options out of range."""

    name: ClassVar[str] = "clustered"
    base: Binary = Binary(4)
    clusters: int = 4
    ratio: float | int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= self.bits:
            raise UsageError(
                f"{self.clusters} clusters are outside 1 … {self.bits}: each has one bit less than"
                f" the one before it, and the first has {self.bits}"
            )
        if not LEAST_RATIO <= self.ratio <= MOST_RATIO:
            raise UsageError(f"ratio {self.ratio} is outside {LEAST_RATIO} … {MOST_RATIO}")

    @property
    def bits(self) -> int:
        """Of the most frequent cluster."""
        return self.base.bits

    @property
    def granularity(self) -> Granularity:
        """That of every cluster."""
        return self.base.granularity

    @property
    def parts(self) -> tuple[Binary, ...]:
        """The scheme of each cluster."""
        return tuple(replace(self.base, bits=self.bits - i) for i in range(self.clusters))

    def part_rows(self, rows: int) -> list[int]:
        """The rows of each cluster. Raises UsageError for fewer rows than clusters."""
        return cluster_sizes(rows, self.clusters, self.ratio)

    def layout(self, rows: int) -> StackedLayout:
        """The binary layouts of the clusters. Raises UsageError for fewer rows than clusters."""
        each = zip(self.part_rows(rows), self.parts, strict=True)
        return StackedLayout(tuple((n, part.layout(n)) for n, part in each))

    def quantize(self, weight: Tensor) -> QTensor:
        """A float weight [out, in] of any dtype in the stacked format.

        Raises InputError where it is not finite, UsageError where it is no matrix of whole groups
        or has fewer rows than there are clusters.
        """
        return self.by_part(weight, lambda rows, part: part.quantize(rows))

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a weight [rows, columns] cannot be stored, or None."""
        few = f"{rows} rows are too few for {self.clusters} clusters"
        return super().misfit(rows, columns) or (few if rows < self.clusters else None)


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
