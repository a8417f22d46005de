"""Binary codes of a table whose rows are in the order of frequency: fewer bits for rarer rows.

    cluster i = 0 … c − 1    rows ∝ rⁱ, in b − i bits                    the most frequent first

for embeddings of words (Chung et al. 2020, "Extremely low bit transformer quantization for
on-device neural machine translation"). With v rows, cluster i ends before row
⌊v · (r⁰ + … + rⁱ) / (r⁰ + … + rᶜ⁻¹) + ½⌋, or as near as it can where every cluster has a row. The
rows must be in that order already: nothing about it is stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from math import floor
from typing import ClassVar

from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import Granularity, StackedTensor, group
from lowbit.formats.table import PlainTensor
from lowbit.schemes.binary import Binary
from lowbit.schemes.weight_range import check_weight

LEAST_RATIO, MOST_RATIO = 1 / 64, 64.0


@dataclass(frozen=True)
class Clustered:
    """Binary codes of `bits` planes for the most frequent cluster, of one less for each that
    follows. All other options are those of `Binary`. Raises UsageError for options out of range."""

    name: ClassVar[str] = "clustered"
    bits: int = 4
    clusters: int = 4
    ratio: float | int = 1
    granularity: Granularity = group(64)
    offset: bool = True
    solver: str = "alternating"
    iterations: int = 15
    nested: bool = False
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        self.of_cluster(0)
        if not 1 <= self.clusters <= self.bits:
            raise UsageError(
                f"{self.clusters} clusters are outside 1 … {self.bits}: each has one bit less than"
                f" the one before it, and the first has {self.bits}"
            )
        if not LEAST_RATIO <= self.ratio <= MOST_RATIO:
            raise UsageError(f"ratio {self.ratio} is outside {LEAST_RATIO} … {MOST_RATIO}")

    def of_cluster(self, i: int) -> Binary:
        """The scheme of the rows of cluster i."""
        return Binary(
            self.bits - i,
            self.granularity,
            self.offset,
            self.solver,
            self.iterations,
            self.nested,
            self.scale_dtype,
        )

    def quantize(self, weight: Tensor) -> StackedTensor:
        """A float weight [out, in] of any dtype in the stacked format.

        Raises InputError where it is not finite, UsageError where it is no matrix of whole groups
        or has fewer rows than there are clusters.
        """
        return self.stack(weight, lambda part, scheme: scheme.quantize(part))

    def stack(
        self, weight: Tensor, solve: Callable[[Tensor, Binary], PlainTensor]
    ) -> StackedTensor:
        """Each cluster of rows as `solve` stores it. Raises as `quantize` does."""
        check_weight(weight, self.granularity)
        clusters = weight.split(cluster_sizes(len(weight), self.clusters, self.ratio))
        return StackedTensor(
            tuple(solve(rows, self.of_cluster(i)) for i, rows in enumerate(clusters))
        )


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
