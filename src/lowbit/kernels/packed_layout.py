"""The packed layout: a weight in the order that the native kernels read, in one tensor of bytes.

csrc/packed_layout.h describes the order: panels of sixteen output rows, codes split into fields of
8, 4, 2 and 1 bits, and every group padded to whole blocks of 32 inputs. The stored parameters
follow the codes, also in panels of sixteen rows:

    scale, zero_point   [panels][groups][16]             affine; a scale per tensor is repeated
    sub_scale           [panels][groups][16]             affine; a byte each; scale: [groups / n]
    alpha_p             [panels][groups][p][16]          binary
    offset_p            [panels][groups][16]             binary; offset, sub_offset of affine, too

`unpack` restores the stored tensors bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor
from torch.nn import functional as F

from lowbit.errors import UsageError
from lowbit.formats import AffineLayout, Layout, PlainLayout, PlainTensor, QTensor
from lowbit.formats.packing import pack, unpack
from lowbit.formats.two_level import SUPER_GROUP
from lowbit.kernels import native
from lowbit.kernels.checks import row_error
from lowbit.kernels.selection import target_here

PANEL_ROWS, BLOCK_INPUTS = 16, 32
CACHE_LINE = 64
READABLE_BEHIND_CODES = 512
# Beyond this many inputs under one scale a sum of |digit| ≤ 128 times |q − z| ≤ 255 leaves int32.
MAX_GROUP = (2**31 - 1) // (128 * 255)
MOST_PADDING = 2  # the largest padded size of a group, relative to its own
REPORTED_PADDING = 1.5  # from this relative size on, `padding` reports it


def unsupported(layout: Layout, in_features: int, device: torch.device) -> str | None:
    """Why a weight cannot be packed, or None."""
    if device.type != "cpu":
        return f"the weight is on {device}, not on the CPU"
    width = layout.granularity.width(in_features)
    if not 1 <= min(width, in_features) <= MAX_GROUP:
        return f"{min(width, in_features)} inputs under one scale are outside 1 … {MAX_GROUP}"
    if layout.granularity.kind == "group" and _padded(width) > MOST_PADDING * width:
        return (
            f"groups of {width} inputs would be padded to {_padded(width)}, more than"
            f" {MOST_PADDING} times as many"
        )
    return None


def padding(layout: Layout, in_features: int) -> str | None:
    """A sentence about groups with much padding, or None."""
    width = min(layout.granularity.width(in_features), in_features)
    if layout.granularity.kind != "group" or _padded(width) < REPORTED_PADDING * width:
        return None
    return f"groups of {width} inputs are padded to {_padded(width)}"


def _padded(width: int) -> int:
    """The inputs of a group, padded to whole blocks."""
    return -(-width // BLOCK_INPUTS) * BLOCK_INPUTS


class Part(NamedTuple):
    """A range of the rows of a weight: its first byte, and its first row."""

    layout: "PackedLayout"
    start: int
    row: int


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """The offsets of all parts of a packed weight, for a layout and shape that `unsupported`
    allows.

    planes: how many planes of a binary weight to use, with the α and o for that number; None for
    all. It does not change the bytes.
    """

    layout: PlainLayout
    out_features: int
    in_features: int
    planes: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Native objects cannot be copied; a copy creates new ones."""
        return PackedLayout, (self.layout, self.out_features, self.in_features, self.planes)

    @property
    def parts(self) -> tuple[Part, ...]:
        """A single part."""
        return (Part(self, 0, 0),)

    @cached_property
    def native(self) -> Any:
        """The native object of this layout."""
        assert native.module is not None
        width = min(self.layout.granularity.width(self.in_features), self.in_features)
        binary = self.layout.format == "binary"
        return native.module.PackedLayout(
            self.out_features, self.in_features, width, self.layout.bits, binary
        )

    @cached_property
    def stored(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return self.layout.tensors(self.out_features, self.in_features)

    @property
    def codes(self) -> str:
        """The name of the stored codes: the first tensor of either format."""
        return next(iter(self.stored))

    @property
    def flip(self) -> int:
        """The bits to flip in stored codes: the sign bit of int8, to make them unsigned."""
        return 0x80 if self.stored[self.codes][1] is torch.int8 else 0

    @property
    def panels(self) -> int:
        return -(-self.out_features // PANEL_ROWS)

    @cached_property
    def codes_size(self) -> int:
        """Bytes of codes, including padding."""
        return self.panels * int(self.native.panel_bytes())

    @cached_property
    def places(self) -> dict[str, slice]:
        """The byte range of each stored tensor except the codes."""
        places, start = {}, self.codes_size
        for name in self.stored:
            if name != self.codes:
                shape, dtype = self._unpacked(name)
                per_row = torch.Size(self._rest(shape)).numel()
                size = self.panels * PANEL_ROWS * per_row * dtype.itemsize
                places[name] = slice(start, start + size)
                start += size
        return places

    @property
    def size(self) -> int:
        """Bytes in total: a tile may extend half beyond the last 8-bit codes."""
        width = self.layout.granularity.width(self.in_features)
        blocks = -(-(self.in_features % width or width) // BLOCK_INPUTS)  # blocks of the last group
        behind = READABLE_BEHIND_CODES if self.layout.bits == 8 and blocks % 2 else 0
        return max(self.codes_size + behind, *(place.stop for place in self.places.values()))

    def pack(self, q: QTensor) -> UInt8[Tensor, " bytes"]:
        """The packed bytes of `q`, which must have this layout and shape. Raises UsageError if a
        zero point is not a code: the kernels hold q - z in 8 bits."""
        tensors = {name: t.contiguous() for name, t in q.tensors().items()}
        _check_zero_point(tensors.get("zero_point"), self.layout.bits)
        packed = torch.zeros(self.size, dtype=torch.uint8, device="cpu")
        self.native.pack(tensors[self.codes].data_ptr(), self.flip, packed.data_ptr())
        for name, place in self.places.items():
            parameter = tensors[name]
            if name in self._sub_bits:
                parameter = unpack(parameter, self._sub_bits[name], self._unpacked(name)[0][1])
            rows = parameter.movedim(self._rows_axis, 0)
            rows = rows.expand(self.out_features, *rows.shape[1:])
            rows = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, -self.out_features % PANEL_ROWS))
            lanes = rows.unflatten(0, (-1, PANEL_ROWS)).movedim(1, -1)
            packed[place] = lanes.contiguous().flatten().view(torch.uint8)
        return packed

    def unpack(self, packed: UInt8[Tensor, " bytes"]) -> PlainTensor:
        """The inverse of `pack`, in new memory."""
        shape, dtype = self.stored[self.codes]
        tensors = {self.codes: torch.empty(shape, dtype=dtype, device="cpu")}
        self.native.unpack(packed.data_ptr(), self.flip, tensors[self.codes].data_ptr())
        for name, place in self.places.items():
            shape, dtype = self._unpacked(name)
            lanes = packed[place].view(dtype).view(self.panels, *self._rest(shape), PANEL_ROWS)
            rows = lanes.movedim(-1, 1).flatten(0, 1)[: shape[self._rows_axis]]
            back = rows.movedim(0, self._rows_axis)
            if name in self._sub_bits:
                back = pack(back, self._sub_bits[name])
            tensors[name] = back.clone(memory_format=torch.contiguous_format)
        return self.layout.assemble(tensors, self.in_features)

    @cached_property
    def weight(self) -> Any:
        """The offsets for native code, relative to the first code."""
        scale, zero, offset, planes = "scale", "zero_point", "offset", 1
        if self.layout.format == "binary":
            planes = self.planes or self.layout.bits
            scale, offset = f"alpha_{planes}", f"offset_{planes}"
        starts = [self.places[n].start if n in self.places else 0 for n in (scale, zero, offset)]
        half = self.stored[scale][1] is torch.float16
        weight: Callable[..., Any] = native.module.Weight  # type: ignore[union-attr]
        form = self.layout.two_level if isinstance(self.layout, AffineLayout) else None
        if form is None:
            return weight(self.native, *starts, planes, half)
        sub = [self.places[n].start if n in self.places else 0 for n in ("sub_scale", "sub_offset")]
        groups = SUPER_GROUP // self.layout.granularity.width(self.in_features)
        return weight(self.native, *starts, planes, half, *sub, groups, form.bits, form.lowest)

    def decode(
        self, packed: UInt8[Tensor, " bytes"], rows: Integer[Tensor, " n"], dtype: torch.dtype
    ) -> Float[Tensor, "n in"]:
        """Decode some rows of the weight. Raises RowError if a row is out of range, UsageError if
        `rows` is not on the CPU."""
        if not rows.is_cpu:
            raise UsageError(f"row numbers on {rows.device} do not fit a table on the CPU")
        rows = rows.to(torch.int64).contiguous()
        out = torch.empty(len(rows), self.in_features, dtype=torch.float32, device="cpu")
        try:
            self.weight.decode(
                packed.data_ptr(),
                rows.data_ptr(),
                len(rows),
                out.data_ptr(),
                target_here("decode_packed"),
            )
        except IndexError:
            raise row_error(rows, self.out_features) from None
        return out if dtype is torch.float32 else out.to(dtype)

    @property
    def _sub_bits(self) -> dict[str, int]:
        """The bits of sub-scales and sub-offsets, by tensor name; the packed layout has bytes."""
        if not isinstance(self.layout, AffineLayout) or self.layout.two_level is None:
            return {}
        return {n: self.layout.two_level.bits for n in self.stored if n.startswith("sub_")}

    def _unpacked(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape and dtype of a parameter in the packed layout."""
        if name not in self._sub_bits:
            return self.stored[name]
        units = self.layout.granularity.parameter_shape(self.out_features, self.in_features)
        return units, torch.uint8

    @property
    def _rows_axis(self) -> int:
        """The dimension of a stored parameter that is the output rows."""
        return -1 if self.layout.format == "binary" else 0

    def _rest(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a stored parameter without its rows."""
        return shape[:-1] if self._rows_axis else shape[1:]


def _check_zero_point(zero_point: Tensor | None, bits: int) -> None:
    if zero_point is None or not zero_point.numel():
        return
    largest, last = int(zero_point.max()), (1 << bits) - 1
    if largest > last:
        raise UsageError(f"zero_point holds {largest}, outside the codes 0 … {last}")
