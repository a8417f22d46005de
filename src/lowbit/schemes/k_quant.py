"""K-quant: affine codes whose scales, and offsets, are in two levels (formats/two_level.py).

    bits  groups  scales, offsets       bits per weight     the grid of llama.cpp's
    2     16      4 bits, and offsets   2.625               Q2_K
    3     16      6 bits, signed        3.4375              Q3_K
    4     32      6 bits, and offsets   4.5                 Q4_K
    5     32      6 bits, and offsets   5.5                 Q5_K
    6     16      8 bits, signed        6.5625              Q6_K

A search finds the parameters (two_level_fit.py). The number of inputs must be a multiple of 256.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lowbit.errors import InputError, UsageError
from lowbit.formats import AffineLayout, AffineTensor, TwoLevel, group
from lowbit.formats.affine import encode
from lowbit.formats.granularity import row_blocks
from lowbit.formats.two_level import TwoLevelFloats, misfit
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.two_level_fit import fit
from lowbit.schemes.weight_range import weight_range


class Kind(NamedTuple):
    """The size of a group, the form of its scales, and whether there are offsets."""

    size: int
    form: TwoLevel
    offsets: bool


KINDS = {
    2: Kind(16, TwoLevel(4, False), True),
    3: Kind(16, TwoLevel(6, True), False),
    4: Kind(32, TwoLevel(6, False), True),
    5: Kind(32, TwoLevel(6, False), True),
    6: Kind(16, TwoLevel(8, True), False),
}
# The largest |weight|: d and e must be finite in float16 for all c and m.
MOST = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class KQuant(Scheme):
    """Quantization with scales in two levels, as in llama.cpp's k-quants.

    The number of inputs must be a multiple of 256.

    Attributes:
        bits: Bits of a code, 2 … 6. Groups have 32 inputs at 4 and 5 bits, else 16.

    Raises:
        UsageError: if `bits` is out of range.
    """

    name: ClassVar[str] = "k-quant"
    bits: int = 4

    @property
    def kind(self) -> Kind:
        """The group size, form of scales and offsets for these bits."""
        return KINDS[self.bits]

    def layout(self, rows: int) -> AffineLayout:
        """The affine layout, in two levels."""
        if self.bits not in KINDS:
            raise UsageError(f"k-quants have 2 … 6 bits, not {self.bits}")
        size, form, offsets = self.kind
        return AffineLayout(self.bits, group(size), False, torch.float16, offsets, form)

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a weight [rows, columns] cannot be stored, or None."""
        return super().misfit(rows, columns) or misfit(columns)

    def quantize(self, weight: Tensor) -> AffineTensor:
        """Quantize a weight in the affine format.

        Args:
            weight: Floats [out, in] of any dtype.

        Raises:
            InputError: if the weight is not finite or exceeds the range of float16.
            UsageError: if the weight is not a matrix, or its inputs are not a multiple of 256.
        """
        return self.fit(weight, None)

    def fit(self, weight: Tensor, importance: Float[Tensor, " in"] | None) -> AffineTensor:
        """Quantize a weight, with the squared error of each input weighted by its importance."""
        size, form, offsets = self.kind
        granularity = group(size)
        low, high = weight_range(weight, granularity)
        if refusal := misfit(weight.shape[1]):
            raise UsageError(refusal)
        largest = max(-low.min().item(), high.max().item()) if weight.numel() else 0.0
        if largest > MOST:
            raise InputError(
                f"a weight of {largest:g} leaves two-level scales, which hold up to {MOST:g}"
            )
        found = [
            fit(weight[rows], importance, size, self.bits, form, offsets)
            for rows in row_blocks(*weight.shape)
        ]
        scale = _joined([scale for scale, _ in found])
        offset = _joined([o for _, o in found if o is not None]) if offsets else None
        lowest = None if offsets else -(1 << self.bits - 1)
        return encode(weight, scale, None, self.bits, granularity, lowest, offset)


def _joined(parts: list[TwoLevelFloats]) -> TwoLevelFloats:
    """Join the parameters of blocks of rows."""
    floats, codes = (torch.cat(x) for x in zip(*((p.floats, p.codes) for p in parts), strict=True))
    return TwoLevelFloats(floats, codes, parts[0].groups, parts[0].form)
