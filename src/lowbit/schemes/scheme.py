"""The base class of schemes: a scheme turns a float weight [out, in] into a quantized tensor.

A scheme is a frozen dataclass. Its fields are its options; each has a default, and recipes, YAML
and config.json use the fields' names. A scheme must define `name`, `layout` and `quantize`. The
other methods have defaults for schemes that store a whole weight in one format.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Granularity, Layout, QTensor


@dataclass(frozen=True)
class Scheme(ABC):
    """The base of every scheme.

    Raises:
        UsageError: if an option is out of range.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        self.layout(1)

    @abstractmethod
    def layout(self, rows: int) -> Layout:
        """The layout of a weight with `rows` rows.

        Scales have the dtype of the options. `quantize` may use float32 instead, if they exceed the
        range of float16.

        Args:
            rows: Output rows of the weight.

        Raises:
            UsageError: if an option is out of range.
        """

    @abstractmethod
    def quantize(self, weight: Tensor) -> QTensor:
        """Quantize a weight.

        Args:
            weight: Floats [out, in] of any dtype.

        Raises:
            InputError: if the weight is not finite.
            UsageError: if the shape does not fit the scheme.
        """

    def fit(self, weight: Tensor, importance: Tensor | None) -> QTensor:
        """Quantize a weight, with a weighted error.

        Args:
            weight: Floats [out, in] of any dtype.
            importance: The weight of the squared error of each input, float [in]. None: 1 for all.
                Schemes that do not search for their parameters ignore it.

        Raises:
            InputError: if the weight is not finite.
            UsageError: if the shape does not fit the scheme.
        """
        return self.quantize(weight)

    @property
    def bits(self) -> int:
        """Bits of a code; the maximum over all rows."""
        return self.layout(1).bits

    @property
    def granularity(self) -> Granularity:
        """Which weights share one scale."""
        return self.layout(1).granularity

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why this scheme cannot store a weight [rows, columns], or None."""
        if not columns:
            return "it has no inputs"
        size = self.granularity.group_size
        if size is not None and size > columns:
            return f"group size {size} is larger than the {columns} inputs"
        return None

    @property
    def parts(self) -> "tuple[Scheme, ...]":
        """The schemes of ranges of rows, if each range has its own format (stacked.py). Solvers
        and training then work part by part."""
        return ()

    def part_rows(self, rows: int) -> Sequence[int]:
        """The number of rows of each part, of `rows` in all."""
        return ()

    def by_part(self, weight: Tensor, solve: "Callable[[Tensor, Scheme], QTensor]") -> QTensor:
        """Call `solve` on the weight and this scheme, or on the rows and scheme of each part."""
        return solve(weight, self)
