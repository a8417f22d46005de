"""The smallest and the largest weight of each unit that shares a scale, with 0 or without."""

import torch
from jaxtyping import Float32
from torch import Tensor

from lowbit.errors import InputError, UsageError
from lowbit.formats import Granularity


def check_weight(weight: Tensor, granularity: Granularity) -> None:
    """Raises UsageError if the weight is not a float matrix, or a row is empty or shorter than a
    group."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise UsageError(
            f"a scheme takes a float matrix [out, in], not {weight.dtype} {list(weight.shape)}"
        )
    if weight.shape[1] == 0:
        raise UsageError(f"a weight of shape {list(weight.shape)} has no inputs to quantize")
    if granularity.group_size is not None and granularity.group_size > weight.shape[1]:
        raise UsageError(
            f"group size {granularity.group_size} is larger than the {weight.shape[1]} inputs"
        )


# The largest |weight|, so that codes times scales, and their sums, stay within float32.
MOST = torch.finfo(torch.float32).max / 4


def check_finite(statistic: Tensor, weight: Tensor) -> None:
    """Raises InputError if `statistic`, which propagates NaN and infinity, is not finite."""
    if not bool(torch.isfinite(statistic).all()):
        bad = weight.numel() - int(torch.isfinite(weight.float()).sum())
        raise InputError(f"{bad} of {weight.numel()} weights are NaN or infinite in float32")


def check_size(largest: float) -> None:
    """Raises InputError if the largest |weight| is so large that weights could overflow when they
    are decoded."""
    if largest > MOST:
        raise InputError(f"a weight of {largest:g} is too large: at most {MOST:g} is quantized")


def weight_range(
    weight: Tensor, granularity: Granularity, with_zero: bool = True
) -> tuple[Float32[Tensor, "units groups"], Float32[Tensor, "units groups"]]:
    """(min(w, 0), max(w, 0)) of each unit, or (min(w), max(w)) without zero. Raises InputError if a
    weight is not finite or too large to be decoded."""
    check_weight(weight, granularity)
    if weight.numel() == 0:
        zeros = weight.new_zeros(granularity.parameter_shape(*weight.shape), dtype=torch.float32)
        return zeros, zeros.clone()
    # Pad a shorter last group with its last weight, which does not change the range.
    missing = -weight.shape[1] % granularity.width(weight.shape[1])
    filled = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1) if missing else weight
    groups = granularity.split(filled)
    # Three times as fast as one torch.aminmax, which is not vectorized along rows.
    low, high = groups.amin(-1).float(), groups.amax(-1).float()
    if granularity.kind == "tensor":
        low, high = low.amin().reshape(1, 1), high.amax().reshape(1, 1)
    ends = torch.stack([low, high])
    check_finite(ends, weight)
    check_size(ends.abs().max().item())
    return (low.clamp(max=0.0), high.clamp(min=0.0)) if with_zero else (low, high)


def step_of(
    low: Float32[Tensor, "units groups"],
    high: Float32[Tensor, "units groups"],
    steps: int,
    scale_dtype: str,
) -> Float32[Tensor, "units groups"]:
    """(max − min) / steps. In float32, one division, bit for bit as other programs compute it; else
    two divisions, for the same codes as earlier releases."""
    if scale_dtype == "float32":
        return (high - low) / steps
    return high / steps - low / steps
