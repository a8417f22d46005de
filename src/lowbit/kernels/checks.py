"""What operators are given, before native code takes addresses of it.

Modules vouch for what they hold; whoever calls an operator by its name may give anything.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lowbit.kernels.stacked_packed_layout import AnyPackedLayout


def check_stored(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    """Raises ValueError for stored tensors without the shapes and dtypes that their layout has."""
    device = next(iter(tensors.values())).device
    for name, (shape, dtype) in wanted.items():
        _check(f"stored tensor {name}", tensors[name], shape, dtype, device)


def check_packed(packed: Tensor, form: AnyPackedLayout) -> None:
    """Raises ValueError for bytes that are not a weight packed as `form`."""
    _check("packed", packed, (form.size,), torch.uint8, torch.device("cpu"))
    if not packed.is_contiguous():
        raise ValueError(f"packed has the strides {packed.stride()}; its bytes must be contiguous")


def check_bias(bias: Tensor | None, out_features: int, device: torch.device) -> None:
    """Raises ValueError for a bias that is not one float for each output."""
    if bias is not None:
        if not bias.is_floating_point():
            raise ValueError(f"bias is {bias.dtype}, not a float dtype")
        _check("bias", bias, (out_features,), bias.dtype, device)


def check_float(name: str, x: Tensor) -> None:
    """Raises ValueError for what is not a float tensor of at least one dimension."""
    if x.dim() == 0 or not x.is_floating_point():
        raise ValueError(f"{name} {list(x.shape)} of {x.dtype} is not a float tensor of rows")


def _check(
    name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if tuple(t.shape) != shape or t.dtype != dtype or t.device != device:
        raise ValueError(
            f"{name} is {t.dtype} {list(t.shape)} on {t.device},"
            f" expected {dtype} {list(shape)} on {device}"
        )
