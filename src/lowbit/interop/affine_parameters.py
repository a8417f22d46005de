"""Convert scales and zero points of other programs to the affine format, exactly."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from lowbit.formats import AffineLayout, AffineTensor, Granularity


@dataclass(frozen=True)
class AffineParameters:
    """The parameters of a weight of another program. zero_point: for codes from 0 on; None if all
    are the middle code, 2^(bits − 1). signed: whether a scale is zero or negative, as AutoRound's
    may be."""

    scale: Float[Tensor, "units groups"]
    zero_point: UInt8[Tensor, "units groups"] | None
    bits: int
    granularity: Granularity
    signed: bool

    @classmethod
    def of(
        cls,
        scale: Float[Tensor, "units groups"],
        zero_point: UInt8[Tensor, "units groups"] | None,
        bits: int,
        granularity: Granularity,
    ) -> Self:
        """scale: of any float dtype; it becomes float16, or float32 if float16 is not exact."""
        if zero_point is not None and bool((zero_point == 1 << (bits - 1)).all()):
            zero_point = None
        half, full = scale.half(), scale.float()
        exact = half if bool((half.float() == full).all()) else full
        return cls(exact, zero_point, bits, granularity, bool((scale <= 0).any()))

    @property
    def layout(self) -> AffineLayout:
        """The layout of the weight in lowbit."""
        shifted = self.zero_point is not None
        own = self.bits, self.granularity, shifted, self.scale.dtype
        return AffineLayout(*own, signed_scale=self.signed)

    def hold(self, codes: UInt8[Tensor, "out packed"], columns: int) -> AffineTensor:
        """The weight with these codes, which start at 0 and are packed as in the affine format."""
        held: Shaped[Tensor, "out packed"] = codes
        if self.layout.signed:  # 0 … 255 around 128 as −128 … 127
            held = (codes ^ 0x80).view(torch.int8)
        own = self.scale, self.zero_point, self.bits, self.granularity, columns
        return AffineTensor(held, *own, signed_scale=self.signed)
