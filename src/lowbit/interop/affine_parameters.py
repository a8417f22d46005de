"""Scales and zero points of other programs as those of the affine format, exactly.

Theirs may be negative or zero, which ours may not: w = s · (q − z) is also w = −s · (q' − z') with
q' = 2^bits − 1 − q and z' = 2^bits − 1 − z, and a group whose scale is zero is a group of zeros.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from lowbit.formats import AffineLayout, AffineTensor, Granularity
from lowbit.formats.packing import pack, unpack


@dataclass(frozen=True)
class AffineParameters:
    """The parameters of a weight as another program has them. zero_point: for codes from 0 on;
    None if all are the middle code, 2^(bits − 1)."""

    scale: Float[Tensor, "units groups"]
    zero_point: UInt8[Tensor, "units groups"] | None
    bits: int
    granularity: Granularity

    @classmethod
    def of(
        cls,
        scale: Float[Tensor, "units groups"],
        zero_point: UInt8[Tensor, "units groups"] | None,
        bits: int,
        granularity: Granularity,
    ) -> Self:
        """scale: of any float dtype; it becomes float16, or float32 if float16 cannot say it."""
        middle = 1 << (bits - 1)
        if zero_point is not None and bool((zero_point == middle).all()):
            zero_point = None
        if zero_point is None and bool((scale < 0).any()):
            zero_point = torch.full(scale.shape, middle, dtype=torch.uint8)
        half, full = scale.half(), scale.float()
        return cls(half if torch.equal(half.float(), full) else full, zero_point, bits, granularity)

    @property
    def layout(self) -> AffineLayout:
        """How lowbit stores the weight."""
        shifted = self.zero_point is not None
        return AffineLayout(self.bits, self.granularity, shifted, self.scale.dtype)

    def hold(self, codes: UInt8[Tensor, "out packed"], columns: int) -> AffineTensor:
        """The weight of these codes, which are packed as the affine format has them, from 0 on."""
        scale, zero_point = self.scale, self.zero_point
        last = (1 << self.bits) - 1
        if bool((scale <= 0).any()):
            zero = last // 2 + 1 if zero_point is None else zero_point
            apart = self.granularity.split(unpack(codes, self.bits, columns))
            negative, nothing = scale < 0, scale == 0
            if zero_point is not None:
                zero_point = torch.where(negative, last - zero_point, zero_point)
                zero = zero_point[..., None]
            apart = torch.where(negative[..., None], last - apart, apart)
            apart = torch.where(nothing[..., None], zero, apart).to(torch.uint8)
            codes = pack(apart.flatten(1)[:, :columns].contiguous(), self.bits)
            scale = torch.where(nothing, torch.ones_like(scale), scale.abs())
        held: Shaped[Tensor, "out packed"] = codes
        if self.layout.signed:  # 0 … 255 around 128 as −128 … 127
            held = (codes ^ 0x80).view(torch.int8)
        return AffineTensor(held, scale, zero_point, self.bits, self.granularity, columns)
