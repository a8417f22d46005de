"""Absmax: symmetric codes, w ≈ s · q.

    s = max|w| / (2^(b−1) − 1),  q = round(w / s) in −(2^(b−1) − 1) … 2^(b−1) − 1

With `range="minmax"` the step is that of the whole range, s = (max − min) / (2^b − 1), and
codes are clamped to −2^(b−1) … 2^(b−1) − 1: a finer step that clips the larger side.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.errors import check_choice
from lowbit.formats import CHANNEL, AffineLayout, AffineTensor, Granularity
from lowbit.formats.affine import encode
from lowbit.formats.scales import named_dtype, safe_scale
from lowbit.schemes.scheme import Scheme
from lowbit.schemes.weight_range import step_of, weight_range


@dataclass(frozen=True)
class Absmax(Scheme):
    """Symmetric quantization at 2 … 8 bits: w ≈ s · q.

    Attributes:
        bits: Bits of a code.
        granularity: Which weights share a scale.
        range: "absmax": s = max |w| / (2^(bits−1) − 1). "minmax": s = (max − min) / (2^bits − 1),
            a finer step that clips the larger side.
        scale_dtype: The dtype of scales, "float16" or "float32". With "float32" the codes equal
            those of float32 arithmetic.

    Raises:
        UsageError: if an option is out of range.
    """

    name: ClassVar[str] = "absmax"
    bits: int = 8
    granularity: Granularity = CHANNEL
    range: str = "absmax"
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("range", self.range, ("absmax", "minmax"))

    def layout(self, rows: int) -> AffineLayout:
        """The affine layout, without zero points."""
        return AffineLayout(self.bits, self.granularity, False, named_dtype(self.scale_dtype))

    def quantize(self, weight: Tensor) -> AffineTensor:
        """Quantize a weight in the affine format.

        Args:
            weight: Floats [out, in] of any dtype.

        Raises:
            InputError: if the weight is not finite or too large.
            UsageError: if the weight is not a matrix, or a row is shorter than a group.
        """
        low, high = weight_range(weight, self.granularity)
        half = 1 << (self.bits - 1)
        if self.range == "minmax":
            scale, lowest = step_of(low, high, 2 * half - 1, self.scale_dtype), -half
        else:
            scale, lowest = torch.maximum(-low, high) / (half - 1), 1 - half
        scale = safe_scale(scale, self.scale_dtype)
        return encode(weight, scale, None, self.bits, self.granularity, lowest)
