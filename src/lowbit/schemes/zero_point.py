"""Zero-point: asymmetric codes, w ≈ s · (q − z).

    s = (max − min) / (2^b − 1),  z = round(−min / s),  q = clamp(round(w / s) + z, 0, 2^b − 1)

The range includes 0, so that 0 is a code and z fits b bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.formats import CHANNEL, AffineLayout, AffineTensor, Granularity
from lowbit.formats.affine import encode
from lowbit.formats.scales import named_dtype, safe_scale
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.weight_range import step_of, weight_range


@dataclass(frozen=True)
class ZeroPoint(Scheme):
    """Asymmetric quantization at 2 … 8 bits. Raises UsageError for options out of range.

    scale_dtype: "float16", or "float32" for the codes that float32 arithmetic finds.
    """

    name: ClassVar[str] = "zero-point"
    bits: int = 8
    granularity: Granularity = CHANNEL
    scale_dtype: str = "float16"

    def layout(self, rows: int) -> AffineLayout:
        """The affine layout, with zero points."""
        return AffineLayout(self.bits, self.granularity, True, named_dtype(self.scale_dtype))

    def quantize(self, weight: Tensor) -> AffineTensor:
        """A float weight [out, in] of any dtype in the affine format.

        Raises InputError where it is not finite, UsageError where it is no matrix of whole groups.
        """
        low, high = weight_range(weight, self.granularity)
        levels = (1 << self.bits) - 1
        step = step_of(low, high, levels, self.scale_dtype)
        scale = safe_scale(step, self.scale_dtype)
        zero_point = (-low / scale.float()).round_().clamp_(0, levels).to(torch.uint8)
        return encode(weight, scale, zero_point, self.bits, self.granularity)
