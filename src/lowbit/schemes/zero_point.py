"""Zero-point: asymmetric codes, w ≈ s · (q − z).

    s = (max − min) / (2^b − 1),  z = round(−min / s),  q = clamp(round(w / s) + z, 0, 2^b − 1)

The range includes 0, so that 0 is representable and z fits in b bits. With `zero="float"` an offset
o = min replaces z: w ≈ s · q + o. Then 0 may not be representable.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import check_choice
from lowbit.formats import CHANNEL, AffineLayout, AffineTensor, Granularity
from lowbit.formats.affine import encode
from lowbit.formats.scales import FLOAT16, named_dtype, safe_scale
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.weight_range import step_of, weight_range


@dataclass(frozen=True)
class ZeroPoint(Scheme):
    """Asymmetric quantization at 2 … 8 bits: w ≈ s · (q − z).

    Attributes:
        bits: Bits of a code.
        granularity: Which weights share a scale and a zero point.
        scale_dtype: The dtype of scales, "float16" or "float32". With "float32" the codes equal
            those of float32 arithmetic.
        zero: "integer" for zero points, "float" for a float offset per scale: w ≈ s · q + o.

    Raises:
        UsageError: if an option is out of range.
    """

    name: ClassVar[str] = "zero-point"
    bits: int = 8
    granularity: Granularity = CHANNEL
    scale_dtype: str = "float16"
    zero: str = "integer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("zero", self.zero, ("integer", "float"))

    def layout(self, rows: int) -> AffineLayout:
        """The affine layout, with zero points or offsets."""
        offset, dtype = self.zero == "float", named_dtype(self.scale_dtype)
        return AffineLayout(self.bits, self.granularity, not offset, dtype, offset)

    def quantize(self, weight: Tensor) -> AffineTensor:
        """Quantize a weight in the affine format.

        Args:
            weight: Floats [out, in] of any dtype.

        Raises:
            InputError: if the weight is not finite or too large.
            UsageError: if the weight is not a matrix, or a row is shorter than a group.
        """
        levels = (1 << self.bits) - 1
        if self.zero == "float":
            low, high = weight_range(weight, self.granularity, with_zero=False)
            scale = safe_scale(step_of(low, high, levels, self.scale_dtype), self.scale_dtype)
            if bool((low.abs() > FLOAT16.max).any()):
                scale = scale.float()
            offset = low.to(scale.dtype)
            return encode(weight, scale, None, self.bits, self.granularity, offset=offset)
        low, high = weight_range(weight, self.granularity)
        step = step_of(low, high, levels, self.scale_dtype)
        scale = safe_scale(step, self.scale_dtype)
        zero_point = (-low / scale.float()).round_().clamp_(0, levels).to(torch.uint8)
        return encode(weight, scale, zero_point, self.bits, self.granularity)
