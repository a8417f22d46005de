"""How scales are stored: float16, or float32 for a tensor whose scales leave float16's range or
whose scheme asks for it."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lowbit.errors import check_choice

FLOAT16 = torch.finfo(torch.float16)
SCALE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


def named_dtype(wanted: str) -> torch.dtype:
    """The dtype of that name. Raises UsageError for one that is not in SCALE_DTYPES."""
    check_choice("scale_dtype", wanted, SCALE_DTYPES)
    return SCALE_DTYPES[wanted]


def stored_dtype(scales: Float[Tensor, "..."], wanted: str = "float16") -> torch.dtype:
    """What is `wanted`, one of SCALE_DTYPES. float16 gives way to float32 unless every non-zero
    |scale| is a normal float16 number.

    Subnormal float16 numbers lose relative precision, and a scale that is off by more than
    1 / (2·qmax) would clip the largest weight by more than half a step.
    """
    if wanted == "float32":
        return torch.float32
    size = scales.abs()
    fits = (size <= FLOAT16.max) & ((size >= FLOAT16.smallest_normal) | (size == 0))
    return torch.float16 if bool(fits.all()) else torch.float32


def safe_scale(scale: Float32[Tensor, "..."], wanted: str = "float16") -> Float[Tensor, "..."]:
    """The scale in `stored_dtype`: 1 for a group of zeros (or one whose scale underflows)."""
    vanished = scale < torch.finfo(torch.float32).smallest_normal
    scale = torch.where(vanished, torch.ones_like(scale), scale)
    return scale.to(stored_dtype(scale, wanted))
