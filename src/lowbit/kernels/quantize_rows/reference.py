"""Dynamic quantization of activations, in PyTorch: x ≈ scale · code.

    a     = max |x|                    over a group of `group_size` consecutive values of a row
    scale = a / 127,  inv = 127 / a    float32 divisions
    code  = rint(x · inv)              float32 product, ties to even, −127 … 127

A group with a < 2⁻¹⁰⁰ gets scale 1 and codes 0. A group with a NaN or an infinity gets scale NaN
and codes 0, so that the output is NaN. The last group of a row may be shorter.
"""

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor
from torch.nn import functional as F

TINY = 2.0**-100


def quantize_rows(
    x: Float[Tensor, "rows cols"], group_size: int
) -> tuple[Int8[Tensor, "rows cols"], Float32[Tensor, "rows groups"]]:
    """Codes and scales of `x`, converted to float32. Raises ValueError if group_size < 1."""
    if group_size < 1:
        raise ValueError(f"group_size {group_size} is less than 1")
    rows, cols = x.shape
    width = min(group_size, max(cols, 1))
    groups = -(-cols // width)
    grouped = F.pad(x.float(), (0, groups * width - cols)).view(rows, groups, width)

    a = grouped.abs().amax(dim=-1, keepdim=True)
    finite = a.isfinite()
    usable = finite & (a >= TINY)
    # Divide tensors: torch may replace a division by a Python number by a multiplication.
    levels = torch.full_like(a, 127.0)
    codes = torch.where(usable, (grouped * (levels / a)).round(), 0.0)
    # Two numbers would have the default dtype.
    unused = torch.full_like(a, torch.nan).masked_fill(finite, 1.0)
    scales = torch.where(usable, a / levels, unused)
    return codes.to(torch.int8).view(rows, groups * width)[:, :cols].contiguous(), scales.squeeze(
        -1
    )
