"""A scheme of schemes: ranges of rows, each by a scheme of its own, in the stacked format."""

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
    """`parts` and `part_rows` are left to say. Raises InputError for parts that differ in
    granularity."""

    def __post_init__(self) -> None:
        _stack((1, part) for part in self.parts)

    @property
    @abstractmethod
    def parts(self) -> tuple[Scheme, ...]:
        """The scheme of each range of rows, from the first row on."""

    @abstractmethod
    def part_rows(self, rows: int) -> Sequence[int]:
        """How many of so many rows each part has. Raises UsageError for too few rows."""

    @property
    def bits(self) -> int:
        """Of the part that has most."""
        return max(part.bits for part in self.parts)

    @property
    def granularity(self) -> Granularity:
        """That of every part."""
        return self.parts[0].granularity

    def layout(self, rows: int) -> StackedLayout:
        """Those of the parts, one above the other. Raises UsageError for too few rows."""
        return _stack(zip(self.part_rows(rows), self.parts, strict=True))

    def quantize(self, weight: Tensor) -> QTensor:
        """A float weight [out, in] of any dtype in the stacked format.

        Raises InputError where it is not finite, UsageError where it is no matrix of whole groups
        or has too few rows.
        """
        return self.by_part(weight, lambda rows, part: part.quantize(rows))

    def by_part(self, weight: Tensor, solve: Callable[[Tensor, Scheme], QTensor]) -> QTensor:
        """What `solve` makes of the rows [n, in] and the scheme of each part. Raises UsageError for
        a weight that is no matrix of whole groups, or has too few rows."""
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
    """The layout of (rows, scheme) one above the other."""
    layouts = tuple((rows, part.layout(rows)) for rows, part in parts)
    return StackedLayout(cast(tuple[tuple[int, PlainLayout], ...], layouts))
