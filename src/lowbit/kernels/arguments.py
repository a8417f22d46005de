"""Weights and scales as operators take them: tensors, numbers, and text that can be traced."""

import ast
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lowbit.formats import Layout, QTensor, StackedLayout, StaticScale, layout_from_dict
from lowbit.kernels.checks import check_packed, check_stored
from lowbit.kernels.packed_layout import unsupported
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout, packed_layout_of


def layout_text(layout: Layout) -> str:
    """The layout as a Python literal."""
    return str(layout.to_dict())


@lru_cache(maxsize=4096)
def _layout(text: str) -> Layout:
    return layout_from_dict(ast.literal_eval(text))


def stored_arguments(q: QTensor) -> tuple[list[Tensor], str]:
    """A quantized tensor as `stored`, `layout`."""
    return list(q.tensors().values()), layout_text(q.layout)


def assemble(stored: Sequence[Tensor], layout: str, in_features: int) -> QTensor:
    """The way back. Raises ValueError for tensors that the layout does not have."""
    parsed = _layout(layout)
    named = dict(zip(parsed.names, stored, strict=True))
    check_stored(named, parsed.tensors(rows_of(stored, layout), in_features))
    return parsed.assemble(named, in_features)


def rows_of(stored: Sequence[Tensor], layout: str) -> int:
    """Output rows: of a stack as its layout has it, else the second last dimension of codes
    [out, …] and planes [bits, out, …]."""
    parsed = _layout(layout)
    return parsed.rows if isinstance(parsed, StackedLayout) else stored[0].shape[-2]


def packed_layout(
    packed: Tensor, layout: str, out_features: int, in_features: int, planes: int
) -> AnyPackedLayout:
    """That of a packed weight, of which the first `planes` are used, 0 for all (and for affine
    ones). Raises ValueError for a shape or a number of planes that cannot be packed, and for bytes
    that are not such a weight."""
    form = _packed_layout(layout, out_features, in_features, planes)
    check_packed(packed, form)
    return form


@lru_cache(maxsize=4096)
def _packed_layout(
    layout: str, out_features: int, in_features: int, planes: int
) -> AnyPackedLayout:
    parsed = _layout(layout)
    refusal = unsupported(parsed, in_features, torch.device("cpu"))
    if planes and planes not in parsed.prefixes:
        refusal = f"there are no parameters for {planes} planes"
    if out_features < 1:
        refusal = f"a weight of {out_features} rows"
    if refusal:
        raise ValueError(f"such a weight cannot be prepacked: {refusal}")
    return packed_layout_of(parsed, out_features, in_features, planes or None)


def static_arguments(input: StaticScale | None) -> tuple[float, int]:
    """A scale of static activations as `input_scale`, which is 0 for others, `input_zero_point`."""
    return (0.0, 0) if input is None else (input.scale, input.zero_point)


def static_scale(scale: float, zero_point: int) -> StaticScale | None:
    """The way back."""
    return StaticScale(scale, zero_point) if scale else None
