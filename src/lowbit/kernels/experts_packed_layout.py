"""The packed layout of a mixture's experts: the packed weights of all experts (packed_layout.py),
consecutive in one tensor of bytes, each aligned to a cache line.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from lowbit.errors import RowError
from lowbit.formats import ExpertsLayout, ExpertsTensor, QTensor
from lowbit.kernels.packed_layout import CACHE_LINE, PackedLayout, Part


@dataclass(frozen=True, eq=False)
class ExpertsPackedLayout:
    """A PackedLayout of experts. out_features: the sum over all experts."""

    layout: ExpertsLayout
    out_features: int
    in_features: int
    planes: int | None = None

    @cached_property
    def rows(self) -> int:
        """The number of outputs of one expert."""
        return self.layout.rows(self.out_features)

    @cached_property
    def each(self) -> PackedLayout:
        """The packed layout of each expert."""
        return PackedLayout(self.layout.each, self.rows, self.in_features, self.planes)

    @cached_property
    def stride(self) -> int:
        """Bytes from one expert to the next."""
        return -(-self.each.size // CACHE_LINE) * CACHE_LINE

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(
            Part(self.each, i * self.stride, i * self.rows) for i in range(self.layout.experts)
        )

    @property
    def size(self) -> int:
        """Bytes of all experts."""
        return self.layout.experts * self.stride

    def pack(self, q: QTensor) -> UInt8[Tensor, " bytes"]:
        """The packed bytes of `q`, which must have this layout and shape."""
        assert isinstance(q, ExpertsTensor)
        packed = torch.zeros(self.size, dtype=torch.uint8, device="cpu")
        for i, (layout, start, _) in enumerate(self.parts):
            packed[start : start + layout.size] = layout.pack(q.expert(i))
        return packed

    def unpack(self, packed: UInt8[Tensor, " bytes"]) -> ExpertsTensor:
        """The inverse of `pack`, in new memory."""
        parts = (layout.unpack(packed[at:]) for layout, at, _ in self.parts)
        return ExpertsTensor.of(parts, self.layout.experts)

    def expert(
        self, packed: UInt8[Tensor, " bytes"], number: int, dtype: torch.dtype
    ) -> Float[Tensor, "rows in"]:
        """The weight of one expert."""
        at = number * self.stride
        return self.each.decode(packed[at : at + self.stride], torch.arange(self.rows), dtype)

    def decode(
        self, packed: UInt8[Tensor, " bytes"], rows: Integer[Tensor, " n"], dtype: torch.dtype
    ) -> Float[Tensor, "n in"]:
        """Decode some rows of the weight. Raises the errors of PackedLayout.decode."""
        out = torch.empty(len(rows), self.in_features, dtype=dtype, device="cpu")
        owner = rows.div(self.rows, rounding_mode="floor")
        for i in owner.unique().tolist():
            if not 0 <= i < self.layout.experts:
                outside = rows[owner == i]
                raise RowError(f"row {int(outside[0])} leaves a weight of {self.out_features}")
            here = owner == i
            at = i * self.stride
            out[here] = self.each.decode(packed[at:], rows[here] - i * self.rows, dtype)
        return out
