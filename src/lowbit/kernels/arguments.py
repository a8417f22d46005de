"""Weights and scales as arguments of operators: tensors, numbers, and text, which can be traced."""

import ast
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lowbit.errors import UsageError, check_at_least
from lowbit.formats import (
    ExpertsLayout,
    Layout,
    QTensor,
    StackedLayout,
    StaticScale,
    layout_from_dict,
)
from lowbit.kernels.checks import check_bytes, check_tensors
from lowbit.kernels.packed_layout import unsupported
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout, packed_layout_of

MOST_TEXT = 1 << 13  # characters of a layout; a stack with the most parts has a third of them
MOST_WEIGHTS = 1 << 48  # numbers in one tensor; products of sizes stay far below the limit of int64
CPU = torch.device("cpu")


def layout_text(layout: Layout) -> str:
    """The layout as a Python literal."""
    return str(layout.to_dict())


@lru_cache(maxsize=4096)
def layout_of(text: str) -> Layout:
    """The inverse of `layout_text`. Raises UsageError or InputError for other text."""
    try:
        if len(text) > MOST_TEXT:
            raise ValueError
        stored = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        stored = None
    if not isinstance(stored, Mapping):
        raise UsageError(f"layout {text[:60]!r} is not the text of a layout (layout_text)")
    return layout_from_dict(stored)


def stored_arguments(q: QTensor) -> tuple[list[Tensor], str]:
    """A quantized tensor as the arguments `stored` and `layout`."""
    return list(q.tensors().values()), layout_text(q.layout)


def check_stored(stored: Sequence[Tensor], layout: str, in_features: int) -> None:
    """Raises UsageError if the tensors are not a weight of this layout and width."""
    parsed = layout_of(layout)
    check_at_least("in_features", in_features, 1)
    if len(stored) != len(parsed.names):
        raise UsageError(
            f"{len(stored)} stored tensors, expected {len(parsed.names)}: {', '.join(parsed.names)}"
        )
    if stored[0].dim() < 2:
        raise UsageError(f"{parsed.names[0]} {list(stored[0].shape)} are not rows of codes")
    named = dict(zip(parsed.names, stored, strict=True))
    # If sizes are symbolic, the sizes of the weight become constants.
    wanted = parsed.tensors(int(rows_of(stored, layout)), int(in_features))
    check_tensors(named, wanted, stored[0].device)


def assemble(stored: Sequence[Tensor], layout: str, in_features: int) -> QTensor:
    """The quantized tensor of arguments that `check_stored` accepts."""
    parsed = layout_of(layout)
    return parsed.assemble(dict(zip(parsed.names, stored, strict=True)), in_features)


def rows_of(stored: Sequence[Tensor], layout: str) -> int:
    """The number of output rows. A stack has it in its layout; else it is the second last dimension
    of codes [out, …] and planes [bits, out, …], for experts times their number."""
    parsed = layout_of(layout)
    if isinstance(parsed, StackedLayout):
        return parsed.rows
    rows = stored[0].shape[-2]
    return rows * parsed.experts if isinstance(parsed, ExpertsLayout) else rows


def check_packed(
    packed: Tensor, layout: str, out_features: int, in_features: int, planes: int
) -> None:
    """Raises UsageError if the shape or number of planes cannot be packed, or if the bytes do not
    fit the packed layout."""
    form = packed_layout(layout, int(out_features), int(in_features), int(planes))
    check_bytes(packed, form.size)


@lru_cache(maxsize=4096)
def packed_layout(layout: str, out_features: int, in_features: int, planes: int) -> AnyPackedLayout:
    """The packed layout of a weight of which the first `planes` are used; 0 for all, and for affine
    weights. Raises UsageError if the shape or number of planes cannot be packed."""
    parsed = layout_of(layout)
    check_at_least("in_features", in_features, 1)
    check_at_least("the rows of a packed weight", out_features, 1)
    if out_features * in_features > MOST_WEIGHTS:
        raise UsageError(f"a weight [{out_features}, {in_features}] has more than 2^48 numbers")
    if isinstance(parsed, StackedLayout):
        parsed.tensors(out_features, in_features)  # raises if the rows differ
    refusal = unsupported(parsed, in_features, CPU)
    if planes and planes not in parsed.prefixes:
        refusal = f"{planes} planes are not available"
    if refusal:
        raise UsageError(f"such a weight cannot be prepacked: {refusal}")
    return packed_layout_of(parsed, out_features, in_features, planes or None)


def static_arguments(input: StaticScale | None) -> tuple[float, int]:
    """The arguments `input_scale`, which is 0 without static activations, and
    `input_zero_point`."""
    return (0.0, 0) if input is None else (input.scale, input.zero_point)


def static_scale(scale: float, zero_point: int) -> StaticScale | None:
    """The way back."""
    return StaticScale(scale, zero_point) if scale else None
