"""Check the arguments of operators, before native code uses their addresses.

Modules check their own tensors, but a direct call of an operator may have any arguments. An
operator and its fake version call the same check. It reads only shapes, dtypes, devices and plain
numbers, and raises UsageError.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lowbit.errors import RowError, UsageError, check_choice
from lowbit.kernels import native

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_given(name: str, value: Tensor | None) -> None:
    """Raises UsageError for None, which torch accepts as an undefined tensor."""
    if value is None:
        raise UsageError(f"{name} is None, not a tensor")


def check_memory(t: Tensor) -> None:
    """Raises UsageError if the numbers of a tensor are not all in memory at their strides: a sparse
    tensor, or one with freed memory."""
    if t.layout is not torch.strided:
        raise UsageError(f"a tensor {list(t.shape)} is {t.layout}: operators take strided ones")
    if t.is_meta or t.numel() == 0:
        return
    last = sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
    needed = (t.storage_offset() + last + 1) * t.element_size()
    if t.untyped_storage().nbytes() < needed:
        raise UsageError(
            f"a tensor {list(t.shape)} of {t.dtype} needs {needed} bytes, and its storage has"
            f" {t.untyped_storage().nbytes()}"
        )


def check_tensors(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    device: torch.device,
) -> None:
    """Raises UsageError if tensors do not have the expected shapes, dtypes and device."""
    for name, (shape, dtype) in wanted.items():
        t = found[name]
        if tuple(t.shape) != shape or t.dtype != dtype or t.device != device:
            raise UsageError(
                f"{name} is {t.dtype} {list(t.shape)} on {t.device},"
                f" expected {dtype} {list(shape)} on {device}"
            )


def check_bytes(packed: Tensor, size: int) -> None:
    """Raises UsageError if `packed` is not a contiguous tensor of `size` bytes on the CPU."""
    cpu = torch.device("cpu")
    check_tensors({"packed": packed}, {"packed": ((size,), torch.uint8)}, cpu)
    if not packed.is_contiguous():
        raise UsageError(f"packed has the strides {packed.stride()}; its bytes must be contiguous")


def check_bias(bias: Tensor | None, out_features: int, device: torch.device) -> None:
    """Raises UsageError if a bias is not one float per output."""
    if bias is not None:
        _check_dtype("bias", bias, FLOATS)
        check_tensors({"bias": bias}, {"bias": ((out_features,), bias.dtype)}, device)


def check_rows(name: str, x: Tensor, columns: int, device: torch.device) -> None:
    """Raises UsageError if x is not a float tensor [*, columns] on the device."""
    _check_dtype(name, x, FLOATS)
    if x.dim() == 0 or x.shape[-1] != columns or x.device != device:
        raise UsageError(
            f"{name} {list(x.shape)} on {x.device} is not rows of {columns} on {device}"
        )


def check_dimensions(name: str, x: Tensor, dimensions: int) -> None:
    """Raises UsageError if x is not a float tensor with this number of dimensions."""
    _check_dtype(name, x, FLOATS)
    if x.dim() != dimensions:
        raise UsageError(f"{name} {list(x.shape)} has {x.dim()} dimensions, expected {dimensions}")


def check_ids(ids: Tensor, device: torch.device) -> None:
    """Raises UsageError if ids are not integers on the device. Reading the rows checks their
    range."""
    _check_dtype("ids", ids, WHOLE)
    if ids.device != device:
        raise UsageError(f"ids on {ids.device} do not fit a table on {device}")


def row_error(rows: Tensor, count: int) -> RowError:
    """The error for `rows` of a table of `count` rows, of which at least one is outside. A table of
    positions has no tokens, so the sentence names both."""
    outside = rows[(rows < 0) | (rows >= count)]
    return RowError(
        f"row {int(outside[0])} is outside a table of {count} rows: a token id or a position is"
        " out of range"
    )


def check_choices(x: Tensor, ids: Tensor, weights: Tensor | None = None) -> None:
    """Raises UsageError if ids do not fit the rows of x. ids: int64 [tokens, slots]. x has a row
    per token or, with weights of the shape of ids, a row per slot."""
    if ids.dtype is not torch.int64 or ids.dim() != 2:
        raise UsageError(
            f"ids {list(ids.shape)} of {ids.dtype} choose no experts: int64 [tokens, slots] are"
            " needed"
        )
    if weights is None:
        if len(x) != len(ids):
            raise UsageError(
                f"ids {list(ids.shape)} do not choose experts for x {list(x.shape)}:"
                f" {len(x)} tokens need as many rows of ids"
            )
        return
    if weights.shape != ids.shape:
        raise UsageError(
            f"weights {list(weights.shape)} do not go with ids {list(ids.shape)}: every chosen"
            " expert needs one"
        )
    if len(x) != ids.numel():
        raise UsageError(
            f"x {list(x.shape)} does not go with ids {list(ids.shape)}: every chosen expert needs"
            f" a row, {ids.numel()} in all"
        )


def check_result(dtype: torch.dtype) -> None:
    """Raises UsageError if the dtype of a result is not a supported float."""
    if dtype not in FLOATS:
        raise UsageError(f"dtype {dtype} is not one of {_listed(FLOATS)}")


def check_target(target: str, *operators: str) -> None:
    """Raises UsageError if no native operator has this target, or if this processor cannot run
    it."""
    targets = {p.name: p.feature for operator in operators for p in native.targets(operator)}
    check_choice("target", target, targets)
    missing = native.lacks(targets[target])
    if missing:
        raise UsageError(f"target {target} cannot be taken: {missing}")


def check_static(activations: str, scale: float, zero_point: int) -> None:
    """Raises UsageError if static activations have no scale, or others have one."""
    if activations != "static":
        if scale or zero_point:
            raise UsageError(
                f"{activations} activations take no scale, got {scale} with zero point {zero_point}"
            )
    elif not 2.0**-126 <= scale <= 2.0**126 or not -128 <= zero_point <= 127:
        raise UsageError(
            f"static activations need a scale in 2^-126 … 2^126 and a zero point in -128 … 127,"
            f" got {scale} and {zero_point}"
        )


def check_finite(name: str, number: float) -> None:
    """Raises UsageError for NaN and infinity."""
    if not math.isfinite(number):
        raise UsageError(f"{name} must be finite, not {number}")


def _check_dtype(name: str, t: Tensor, known: Collection[torch.dtype]) -> None:
    if t.dtype not in known:
        raise UsageError(f"{name} {list(t.shape)} is {t.dtype}, none of {_listed(known)}")


def _listed(dtypes: Collection[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
