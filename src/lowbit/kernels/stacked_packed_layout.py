"""The packed layout of a stacked weight: the packed parts (packed_layout.py), consecutive in one
tensor of bytes, each aligned to a cache line.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from lowbit.formats import ExpertsLayout, Layout, QTensor, StackedLayout, StackedTensor
from lowbit.formats.stacked import among
from lowbit.kernels.checks import row_error
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.packed_layout import CACHE_LINE, PackedLayout, Part


@dataclass(frozen=True, eq=False)
class StackedPackedLayout:
    """A PackedLayout of several parts. planes: how many planes of each part to use; parts with
    fewer use all."""

    layout: StackedLayout
    out_features: int
    in_features: int
    planes: int | None = None

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        parts, start, row = [], 0, 0
        for rows, layout in self.layout.parts:
            planes = None if self.planes is None else min(self.planes, layout.bits)
            parts.append(Part(PackedLayout(layout, rows, self.in_features, planes), start, row))
            start += -(-parts[-1].layout.size // CACHE_LINE) * CACHE_LINE
            row += rows
        return tuple(parts)

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self.parts[-1].start + self.parts[-1].layout.size

    def pack(self, q: QTensor) -> UInt8[Tensor, " bytes"]:
        """The packed bytes of `q`, which must have this layout and shape."""
        assert isinstance(q, StackedTensor)
        packed = torch.zeros(self.size, dtype=torch.uint8, device="cpu")
        for (layout, start, _), part in zip(self.parts, q.parts, strict=True):
            packed[start : start + layout.size] = layout.pack(part)
        return packed

    def unpack(self, packed: UInt8[Tensor, " bytes"]) -> StackedTensor:
        """The inverse of `pack`, in new memory."""
        return StackedTensor(tuple(layout.unpack(packed[at:]) for layout, at, _ in self.parts))

    def decode(
        self, packed: UInt8[Tensor, " bytes"], rows: Integer[Tensor, " n"], dtype: torch.dtype
    ) -> Float[Tensor, "n in"]:
        """Decode some rows of the weight. Raises the errors of PackedLayout.decode."""
        out = torch.empty(len(rows), self.in_features, dtype=dtype, device="cpu")
        found = 0
        for (layout, start, _), (here, own) in zip(
            self.parts, among(rows, self.layout), strict=True
        ):
            out[here] = layout.decode(packed[start:], own, dtype)
            found += len(here)
        if found < len(rows):
            raise row_error(rows, self.out_features)
        return out


AnyPackedLayout = PackedLayout | StackedPackedLayout | ExpertsPackedLayout
_KINDS: dict[type[Any], type[Any]] = {
    StackedLayout: StackedPackedLayout,
    ExpertsLayout: ExpertsPackedLayout,
}


def packed_layout_of(
    layout: Layout, out_features: int, in_features: int, planes: int | None = None
) -> AnyPackedLayout:
    """The packed layout of a layout and shape."""
    kind = _KINDS.get(type(layout), PackedLayout)
    made: AnyPackedLayout = kind(layout, out_features, in_features, planes)
    return made
