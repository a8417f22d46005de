"""A packed weight of a module, in the order that the native kernels read."""

from dataclasses import dataclass, replace
from typing import Self

from jaxtyping import UInt8
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels.checks import check_bytes
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout, packed_layout_of


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """The packed layout and the bytes. Created and dropped as a whole, so that a running call can
    finish while another thread changes the module. Raises UsageError if the bytes do not fit the
    layout, because native code gets only their address."""

    layout: AnyPackedLayout
    bytes: UInt8[Tensor, " bytes"]

    def __post_init__(self) -> None:
        check_bytes(self.bytes, self.layout.size)

    @classmethod
    def of(cls, q: QTensor, planes: int | None) -> Self:
        """Pack a quantized tensor. planes: how many of its planes to use; None for all."""
        layout = packed_layout_of(q.layout, *q.shape, planes)
        return cls(layout, layout.pack(q))

    def stored(self) -> QTensor:
        """The quantized tensor, bit for bit, in new memory."""
        return self.layout.unpack(self.bytes)

    def using(self, planes: int | None) -> Self:
        """The same bytes, with another number of planes in use."""
        return replace(self, layout=replace(self.layout, planes=planes))
