"""Linear layers with the same input, such as Q, K and V of an attention: one call computes all.

The first layer also computes the others, with activations quantized once. It keeps their results
until they are called with *the same tensor with the same content*. Modules, weights and all bits of
the results stay the same. If the others are called with another tensor (cross-attention reads K and
V from elsewhere), the results stay correct but work is lost, and the group stops sharing.

A tensor has a version that counts writes. Tensors of inference mode have none: then a copy of a
small tensor detects writes. For a large tensor a copy would cost more than sharing gains, so each
layer computes by itself.
"""

import threading
from ctypes import memmove
from typing import Any

import torch
from torch import Tensor

from lowbit.kernels import native, ops
from lowbit.kernels.linear.native import together
from lowbit.nn.linear import PackedCall, QuantLinear

MOST_COPIED = 1 << 20  # largest tensor to copy, in bytes


class _Copy(threading.local):
    """A copy of an inference tensor. A thread has one copy, of the last such tensor."""

    buffer = torch.empty(0, dtype=torch.uint8)
    shape = torch.Size()
    of: "_Pending | None" = None

    def take(self, x: Tensor, of: "_Pending") -> bool:
        """Copy x, unless it is large. Returns whether x was copied."""
        if x.nbytes > MOST_COPIED or not x.is_contiguous() or not x.is_cpu:
            return False
        if len(self.buffer) < x.nbytes:
            with torch.inference_mode(False):
                self.buffer = torch.empty(x.nbytes, dtype=torch.uint8)
        memmove(self.buffer.data_ptr(), x.data_ptr(), x.nbytes)
        self.of, self.shape = of, x.shape
        return True

    def equals(self, x: Tensor, of: "_Pending") -> bool:
        if self.of is not of or x.shape != self.shape or not x.is_contiguous():
            return False
        assert native.module is not None
        same: bool = native.module.same_bytes(self.buffer.data_ptr(), x.data_ptr(), x.nbytes)
        return same


_COPY = _Copy()


class _Pending(threading.local):
    """The results that one thread has computed ahead, and their input."""

    x: Tensor | None = None
    version: int | None = None  # None: compare with the copy
    results: dict[int, Tensor] = {}  # by place in the group

    def watch(self, x: Tensor) -> bool:
        """Remember the content of x. Returns whether later writes to x can be detected."""
        self.version = None if x.is_inference() else x._version
        return self.version is not None or _COPY.take(x, self)

    def holds(self, x: Tensor) -> bool:
        """Whether the results were computed from x with its present content."""
        if x is not self.x:
            return False
        return x._version == self.version if self.version is not None else _COPY.equals(x, self)


class SharedInput:
    """A group of layers, in the order in which they are called."""

    def __init__(self, members: tuple[QuantLinear, ...]) -> None:
        self.members = members
        self.pays = True
        self._pending = _Pending()

    def __getstate__(self) -> dict[str, Any]:
        """State for copies, without pending results."""
        return {"members": self.members, "pays": self.pays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pending=_Pending())

    def __call__(self, member: QuantLinear, x: Tensor) -> Tensor | None:
        """The result of `member` for x, or None if it must compute by itself."""
        if torch.compiler.is_compiling() or not self.pays:
            return None
        if member is self.members[0]:
            return self._compute(x)
        pending = self._pending
        if not pending.holds(x):
            return None
        place = next(i for i, other in enumerate(self.members) if other is member)
        y = pending.results.pop(place, None)
        if not pending.results:
            pending.x = None
        return y

    def _compute(self, x: Tensor) -> Tensor | None:
        pending = self._pending
        self.pays = pending.x is None  # else the last results were not used
        pending.x, pending.results = None, {}
        calls = self._calls(x) if self.pays else None
        if calls is None or not pending.watch(x):
            return None
        products = [call.product for call in calls]
        first, *others = together(products, x, [(call.weight.bytes, call.bias) for call in calls])
        pending.x = x
        pending.results = dict(enumerate(others, 1))
        return first

    def _calls(self, x: Tensor) -> list[PackedCall] | None:
        """The packed calls of all layers, if they can be computed together."""
        calls: list[PackedCall] = []
        for member in self.members:
            call = member.packed_call()
            if call is None or ops.dispatched(x, call.bias):
                return None
            calls.append(call)
        form = calls[0].product.input_form
        return calls if all(call.product.input_form == form for call in calls) else None
