"""A weight of 8-bit codes in the order that the native kernels read, in one tensor of bytes.

    codes       [ceil(out/16)][ceil(in/4)][16][4]    uint8; int8 codes with the sign bit flipped
    scale       float16 or float32                   as stored
    zero_point  uint8                                as stored, where there is one

16 output rows lie side by side, 4 consecutive inputs each (csrc/linear_int8.h says why). Rows and
inputs are padded with zeros. Nothing is lost: `unpack` gives the stored tensors back bit for bit.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from lowbit.formats import AffineLayout, AffineTensor, Layout, QTensor

ROWS, INPUTS = 16, 4  # of one 64-byte step
SIGN = 0x80


@dataclass(frozen=True)
class Interleaved:
    """Where everything lies for one layout of 8 bits and one shape."""

    layout: AffineLayout
    out_features: int
    in_features: int

    @cached_property
    def codes_size(self) -> int:
        """Bytes of codes, padding included."""
        panels, steps = -(-self.out_features // ROWS), -(-self.in_features // INPUTS)
        return panels * steps * ROWS * INPUTS

    @cached_property
    def places(self) -> dict[str, slice]:
        """The bytes of each stored tensor but the codes."""
        places, start = {}, self.codes_size
        for name, (shape, dtype) in self.layout.tensors(
            self.out_features, self.in_features
        ).items():
            if name != "codes":
                size = shape[0] * shape[1] * dtype.itemsize
                places[name] = slice(start, start + size)
                start += size
        return places

    @classmethod
    def of(cls, layout: Layout, out_features: int, in_features: int) -> Self:
        """For a layout that is known to be affine of 8 bits."""
        assert isinstance(layout, AffineLayout) and layout.bits == 8
        return cls(layout, out_features, in_features)

    def pack(self, q: QTensor) -> UInt8[Tensor, " bytes"]:
        """Codes and parameters of `q`, which must have this layout and shape."""
        assert isinstance(q, AffineTensor)
        codes = q.codes.view(torch.uint8)
        if self.layout.signed:
            codes = codes ^ SIGN
        codes = F.pad(codes, (0, -self.in_features % INPUTS, 0, -self.out_features % ROWS))
        # Four inputs move as one int32.
        steps = codes.contiguous().view(torch.int32).unflatten(0, (-1, ROWS)).transpose(1, 2)
        size = max(place.stop for place in self.places.values())
        packed = torch.empty(size, dtype=torch.uint8)
        packed[: self.codes_size].view(torch.int32).view(steps.shape).copy_(steps)
        for name, place in self.places.items():
            packed[place] = q.tensors()[name].contiguous().view(torch.uint8).flatten()
        return packed

    def unpack(self, packed: UInt8[Tensor, " bytes"]) -> AffineTensor:
        """What `pack` was given, in memory of its own."""
        steps = packed[: self.codes_size].view(torch.int32)
        steps = steps.view(-1, -(-self.in_features // INPUTS), ROWS)
        rows = steps.new_empty(len(steps) * ROWS, steps.shape[1])
        rows.unflatten(0, (-1, ROWS)).copy_(steps.transpose(1, 2))
        codes = rows.view(torch.uint8)[: self.out_features, : self.in_features]
        codes = (codes ^ SIGN).view(torch.int8) if self.layout.signed else codes.contiguous()
        stored = self.layout.tensors(self.out_features, self.in_features)
        tensors = {"codes": codes}
        for name, place in self.places.items():
            shape, dtype = stored[name]
            tensors[name] = packed[place].clone().view(dtype).view(shape)
        return self.layout.assemble(tensors, self.in_features)
