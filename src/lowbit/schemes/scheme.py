"""What a scheme is: how a float weight [out, in] becomes a quantized tensor.

A scheme is a frozen dataclass. Its fields are its options; recipes, YAML and config.json name them,
and each has a default. It says `name`, `layout` and `quantize`; everything else has an answer here
that suits a scheme which stores a whole weight in one format.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Granularity, Layout, QTensor


@dataclass(frozen=True)
class Scheme(ABC):
    """The base of every scheme. Raises UsageError for options that no layout has."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        self.layout(1)

    @abstractmethod
    def layout(self, rows: int) -> Layout:
        """How a weight of so many rows is stored. Nothing is quantized for it, so that scales have
        the dtype that was asked for: those that leave the range of float16 become float32.

        Raises UsageError for options out of range.
        """

    @abstractmethod
    def quantize(self, weight: Tensor) -> QTensor:
        """A float weight [out, in] of any dtype, quantized.

        Raises InputError for a weight that is not finite, UsageError for one that does not fit.
        """

    def fit(self, weight: Tensor, importance: Tensor | None) -> QTensor:
        """As `quantize`. A scheme that searches for its parameters counts the error of each input
        by its importance [in], if there is one. Others ignore importance."""
        return self.quantize(weight)

    @property
    def bits(self) -> int:
        """Of a code; the most that any row has."""
        return self.layout(1).bits

    @property
    def granularity(self) -> Granularity:
        """What shares one scale."""
        return self.layout(1).granularity

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a weight [rows, columns] cannot be stored, or None."""
        if not columns:
            return "it has no inputs"
        size = self.granularity.group_size
        if size is not None and size > columns:
            return f"group size {size} is larger than the {columns} inputs"
        return None

    @property
    def parts(self) -> "tuple[Scheme, ...]":
        """The schemes of ranges of rows, if these are stored each by itself (stacked.py). What
        chooses or trains codes does so part by part."""
        return ()

    def part_rows(self, rows: int) -> Sequence[int]:
        """How many of so many rows each part has."""
        return ()

    def by_part(self, weight: Tensor, solve: "Callable[[Tensor, Scheme], QTensor]") -> QTensor:
        """What `solve` makes of the weight, or of the rows of each part, and their scheme."""
        return solve(weight, self)
