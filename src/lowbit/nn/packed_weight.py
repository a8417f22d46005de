"""A weight in the order that the native kernels read, as modules hold it."""

from dataclasses import dataclass, replace
from typing import Self

from jaxtyping import UInt8
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels.checks import check_bytes
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout, packed_layout_of


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """Where everything lies, and the bytes. Made and dropped as a whole: whoever has one computes
    with it to the end, whatever becomes of the module meanwhile. Raises UsageError for bytes that
    are not those of such a weight: native code is given their address and nothing else."""

    layout: AnyPackedLayout
    bytes: UInt8[Tensor, " bytes"]

    def __post_init__(self) -> None:
        check_bytes(self.bytes, self.layout.size)

    @classmethod
    def of(cls, q: QTensor, planes: int | None) -> Self:
        """That of a quantized tensor, of which `planes` are in use; None for all."""
        layout = packed_layout_of(q.layout, *q.shape, planes)
        return cls(layout, layout.pack(q))

    def stored(self) -> QTensor:
        """The quantized tensor, bit for bit, in memory of its own."""
        return self.layout.unpack(self.bytes)

    def using(self, planes: int | None) -> Self:
        """The same bytes, of which `planes` are in use."""
        return replace(self, layout=replace(self.layout, planes=planes))
