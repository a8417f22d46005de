"""The base of schemes in the stacked format: each range of rows has its own scheme."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import (
    Granularity,
    PlainLayout,
    PlainTensor,
    QTensor,
    StackedLayout,
    StackedTensor,
)
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.weight_range import check_weight


class StackedScheme(Scheme):
    """Subclasses must define `parts` and `part_rows`. Raises InputError if parts differ in
    granularity."""

    def __post_init__(self) -> None:
        _stack((1, part) for part in self.parts)

    @property
    @abstractmethod
    def parts(self) -> tuple[Scheme, ...]:
        """The scheme of each range of rows, from the first row on."""

    @abstractmethod
    def part_rows(self, rows: int) -> Sequence[int]:
        """The number of rows of each part, of `rows` in all. Raises UsageError for too few rows."""

    @property
    def bits(self) -> int:
        """The bits of the part with the most."""
        return max(part.bits for part in self.parts)

    @property
    def granularity(self) -> Granularity:
        """The granularity of every part."""
        return self.parts[0].granularity

    def layout(self, rows: int) -> StackedLayout:
        """The stacked layout of all parts. Raises UsageError for too few rows."""
        return _stack(zip(self.part_rows(rows), self.parts, strict=True))

    def quantize(self, weight: Tensor) -> QTensor:
        """Quantize a float weight [out, in] of any dtype in the stacked format.

        Raises InputError if it is not finite, UsageError if it is not a matrix, a row is shorter
        than a group, or it has too few rows.
        """
        return self.by_part(weight, lambda rows, part: part.quantize(rows))

    def by_part(self, weight: Tensor, solve: Callable[[Tensor, Scheme], QTensor]) -> QTensor:
        """Call `solve` on the rows [n, in] and the scheme of each part. Raises UsageError if the
        weight is not a matrix, a row is shorter than a group, or it has too few rows."""
        check_weight(weight, self.granularity)
        rows = weight.split(list(self.part_rows(len(weight))))
        solved = tuple(map(solve, rows, self.parts))
        return StackedTensor(cast(tuple[PlainTensor, ...], solved))  # no part is a stack itself

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a weight [rows, columns] cannot be stored, or None."""
        try:
            self.part_rows(rows)
        except UsageError as few:
            return super().misfit(rows, columns) or str(few)
        return super().misfit(rows, columns)


def _stack(parts: Iterable[tuple[int, Scheme]]) -> StackedLayout:
    """The stacked layout of (rows, scheme) pairs."""
    layouts = tuple((rows, part.layout(rows)) for rows, part in parts)
    return StackedLayout(cast(tuple[tuple[int, PlainLayout], ...], layouts))
