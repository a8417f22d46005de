"""The stored forms. One file each: layout, frozen data, and the pure functions beside them.

Two stand by themselves; the third puts ranges of rows in these one above the other, the fourth
holds the experts of a mixture.
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

# What is written is of the first version that can say it.
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
    """The inverse of `Layout.to_dict`. Raises InputError for a format or key it does not know."""
    layout: Layout = read_layout(stored, FORMATS)
    return layout


def decode(q: QTensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
    """The float weight that a quantized tensor stands for, computed in float32."""
    weight: Tensor = FORMATS[q.layout.format].decode(q, dtype)
    return weight


def decode_rows(
    q: QTensor, rows: slice | Integer[Tensor, " n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "_n in"]:
    """The given output rows of the weight, which alone are decoded."""
    weight: Tensor = FORMATS[q.layout.format].decode_rows(q, rows, dtype)
    return weight


def prefix(q: QTensor, planes: int) -> QTensor:
    """The model of the first `planes` planes; what has no planes stays whole. Raises UsageError
    where q does not hold it."""
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
