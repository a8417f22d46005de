"""How scales are stored: float16, or float32 for a tensor whose scales leave float16's range."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

FLOAT16 = torch.finfo(torch.float16)


def stored_dtype(scales: Float[Tensor, "..."]) -> torch.dtype:
    """float16 where every non-zero |scale| is a normal float16 number, else float32.

    Subnormal float16 numbers lose relative precision, and a scale that is off by more than
    1 / (2·qmax) would clip the largest weight by more than half a step.
    """
    size = scales.abs()
    fits = (size <= FLOAT16.max) & ((size >= FLOAT16.smallest_normal) | (size == 0))
    return torch.float16 if bool(fits.all()) else torch.float32


def safe_scale(scale: Float32[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The scale as stored: 1 for a group of zeros (or one whose scale underflows)."""
    vanished = scale < torch.finfo(torch.float32).smallest_normal
    scale = torch.where(vanished, torch.ones_like(scale), scale)
    return scale.to(stored_dtype(scale))
