"""The formats of quantized tensors. Each file has a layout, a frozen tensor class, and functions.

The affine and the binary format store a whole weight. The stacked format stores ranges of rows in
these formats. The experts format stores the experts of a mixture.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from lowbit.formats import experts, stacked
from lowbit.formats.affine import AffineLayout, AffineTensor
from lowbit.formats.binary import BinaryLayout, BinaryTensor
from lowbit.formats.experts import ExpertsLayout, ExpertsTensor
from lowbit.formats.granularity import CHANNEL, TENSOR, Granularity, group
from lowbit.formats.stacked import StackedLayout, StackedTensor
from lowbit.formats.static_scale import StaticScale, fake_quantize
from lowbit.formats.table import PLAIN, Format, PlainLayout, PlainTensor, read_layout
from lowbit.formats.two_level import TwoLevel, TwoLevelFloats

# A checkpoint is written in the oldest version that supports its layouts.
VERSIONS = (1, 2)

QTensor = PlainTensor | StackedTensor | ExpertsTensor
Layout = PlainLayout | StackedLayout | ExpertsLayout

FORMATS = PLAIN | {
    "stacked": Format(
        StackedLayout, StackedTensor, stacked.decode, stacked.decode_rows, stacked.prefix
    ),
    "experts": Format(
        ExpertsLayout, ExpertsTensor, experts.decode, experts.decode_rows, experts.prefix
    ),
}


def layout_from_dict(stored: Mapping[str, Any]) -> Layout:
    """The inverse of `Layout.to_dict`. Raises InputError if the format or a key is unknown."""
    layout: Layout = read_layout(stored, FORMATS)
    return layout


def decode(q: QTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """Decode a quantized tensor. It is computed in float32 and then cast to `dtype`."""
    weight: Tensor = FORMATS[q.layout.format].decode(q, dtype)
    return weight


def decode_rows(
    q: QTensor, rows: slice | Integer[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "_n in"]:
    """Decode only the given output rows of the weight."""
    weight: Tensor = FORMATS[q.layout.format].decode_rows(q, rows, dtype)
    return weight


def prefix(q: QTensor, planes: int) -> QTensor:
    """The tensor of the first `planes` planes; formats without planes stay whole. Raises UsageError
    if q has no α for this number of planes."""
    of = FORMATS[q.layout.format].prefix
    first: QTensor = q if of is None else of(q, planes)
    return first


__all__ = [
    "CHANNEL",
    "FORMATS",
    "TENSOR",
    "VERSIONS",
    "AffineLayout",
    "AffineTensor",
    "BinaryLayout",
    "BinaryTensor",
    "ExpertsLayout",
    "ExpertsTensor",
    "Format",
    "Granularity",
    "Layout",
    "PlainLayout",
    "PlainTensor",
    "QTensor",
    "StackedLayout",
    "StackedTensor",
    "StaticScale",
    "TwoLevel",
    "TwoLevelFloats",
    "decode",
    "decode_rows",
    "fake_quantize",
    "group",
    "layout_from_dict",
    "prefix",
]
