"""Dynamic quantization of activations by csrc/quantize_rows.h."""

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from lowbit.kernels.native import module


def unsupported(x: Tensor, group_size: int) -> str | None:
    return None if x.is_cpu else f"x is on {x.device}, not on the CPU"


def quantize_rows(
    x: Float[Tensor, "rows cols"], group_size: int, *, target: str
) -> tuple[Int8[Tensor, "rows cols"], Float32[Tensor, "rows groups"]]:
    """Codes and scales of `x`, converted to float32.

    target: the name of one of native.targets("quantize_rows").

    Raises ValueError if the target is unknown or this processor lacks it, or if group_size < 1.
    """
    if group_size < 1:
        raise ValueError(f"group_size {group_size} is less than 1")
    assert module is not None
    x = x.float().contiguous()
    rows, cols = x.shape
    group_size = min(group_size, max(cols, 1))
    codes = torch.empty(rows, cols, dtype=torch.int8)
    scales = torch.empty(rows, -(-cols // group_size), dtype=torch.float32)
    module.quantize_rows(
        x.data_ptr(), codes.data_ptr(), scales.data_ptr(), rows, cols, group_size, target
    )
    return codes, scales
