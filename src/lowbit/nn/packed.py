"""A module whose weight is a stored form: what QuantLinear and QuantEmbedding share.

The stored tensors are persistent buffers under their names in the format ("codes", "scale", …),
with exactly the stored shape and dtype. A tied module holds no tensors but a reference to the
module that does.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from lowbit.formats import Layout, QTensor


class Packed(nn.Module):
    """Holds a stored weight [rows, columns]; `float_shape` is that of the weight it replaced."""

    compute_dtype: Tensor
    tied_to: "Packed | None"
    replaced: nn.Module

    def __init__(
        self, layout: Layout, rows: int, columns: int, float_shape: tuple[int, int]
    ) -> None:
        super().__init__()
        self.layout = layout
        self.rows, self.columns = rows, columns
        self.float_shape = float_shape
        self.stored = tuple(layout.tensors(rows, columns))
        # Registered nowhere, so that tied tensors are counted and saved once.
        object.__setattr__(self, "tied_to", None)
        object.__setattr__(self, "replaced", None)
        for name, (shape, dtype) in layout.tensors(rows, columns).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
        # Follows `.to(dtype)` as a float weight would; empty, and saved nowhere.
        self.register_buffer("compute_dtype", torch.empty(0), persistent=False)

    def hold(self, q: QTensor) -> Self:
        """Take over the tensors of q, which must have this module's layout and shape."""
        if q.layout != self.layout or q.shape != (self.rows, self.columns):
            raise ValueError(
                f"{q.layout} {q.shape} does not fit {self.layout} {(self.rows, self.columns)}"
            )
        for name, tensor in q.tensors().items():
            setattr(self, name, tensor)
        return self

    def tie(self, source: "Packed") -> Self:
        """Use the stored tensors of `source` from now on."""
        for name in self.stored:
            delattr(self, name)
        self.stored = ()
        object.__setattr__(self, "tied_to", source)
        return self

    def stand_in_for(self, module: nn.Module, compute: Tensor) -> None:
        """Remember the float module, without its data, for the way back; compute like `compute`."""
        self.compute_dtype = compute.new_empty(0)
        module.weight = nn.Parameter(
            torch.empty(self.float_shape, dtype=compute.dtype, device="meta")
        )
        object.__setattr__(self, "replaced", module)

    @property
    def qweight(self) -> QTensor:
        """The stored weight."""
        owner = self if self.tied_to is None else self.tied_to
        return self.layout.assemble(owner._buffers, self.columns)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """No data: shape, dtype and device of a float weight, for code that only asks for those."""
        weight = torch.empty(self.float_shape, dtype=self.compute_dtype.dtype, device="meta")
        weight._is_hf_initialized = True  # type: ignore[attr-defined]
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stored tensors follow a change of device but never one of dtype."""
        stored = {id(self._buffers[name]) for name in self.stored}

        def apply(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in stored and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        super()._apply(apply, recurse)
        return self

    def describe(self) -> str:
        """Format, bits and granularity in a few words."""
        layout = self.layout
        return f"{layout.format} {layout.bits} bits per {layout.granularity}"
