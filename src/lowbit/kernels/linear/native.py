"""Linear layers over stored weights by csrc/linear.h.

Activations are quantized inside the same call: *dynamic* ones to int8 per group, with the bits of
the reference as the result; *float* ones to fixed-point numbers of 32 bits per group, four int8
digits each, so that products and sums are exact integers there too and the result errs at most
twice as much as a float32 product. All paths give the same bits.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels import lanes
from lowbit.kernels.lanes import Lanes
from lowbit.kernels.native import module
from lowbit.kernels.selection import Kernel

DIGITS = {"float": 4, "dynamic": 1}


class LinearProduct:
    """The product with a weight prepacked as `form` says, on one path of the native code.

    Everything that does not change between calls is found here once.
    """

    def __init__(self, form: Lanes, activations: str, path: str) -> None:
        self.form, self.activations, self.path = form, activations, path
        self.out_features, self.in_features = form.out_features, form.in_features
        self._weight, self._digits = form.weight, DIGITS[activations]
        self._run = module.LinearPath(path)  # type: ignore[union-attr]

    def __reduce__(self) -> tuple[Any, ...]:
        """Native objects cannot be copied; they are found again."""
        return LinearProduct, (self.form, self.activations, self.path)

    def __call__(
        self,
        x: Float[Tensor, "*tokens in"],
        packed: UInt8[Tensor, " bytes"],
        bias: Float[Tensor, " out"] | None,
    ) -> Float[Tensor, "*tokens out"]:
        """x · Wᵀ + bias in x's dtype. Raises ValueError for an x that does not fit."""
        shape, dtype = x.shape, x.dtype
        if shape[-1] != self.in_features or not x.is_cpu:
            raise ValueError(
                f"x {list(shape)} on {x.device} does not fit a weight"
                f" {[self.out_features, self.in_features]} prepacked on the CPU"
            )
        if dtype is not torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
            bias = bias.float().contiguous()
        y = x.new_empty(shape[:-1] + (self.out_features,))
        self._run(
            self._weight,
            x.data_ptr(),
            packed.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            x.numel() // self.in_features,
            self._digits,
        )
        return y if dtype is torch.float32 else y.to(dtype)


def linear(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    *,
    activations: str,
    path: str,
) -> Float[Tensor, "*tokens out"]:
    """The same from the stored form, which is prepacked for this one call."""
    form = Lanes(q.layout, *q.shape)
    return LinearProduct(form, activations, path)(x, form.pack(q), bias)


def kernels(activations: str) -> tuple[Kernel, ...]:
    """One for each path, best first."""
    return tuple(
        Kernel(
            name, partial(linear, activations=activations, path=name), lanes.unsupported, isa=isa
        )
        for name, isa in (
            ("amx", "amx"),
            ("avx512", "avx512vnni"),
            ("avxvnni", "avxvnni"),
            ("avx2", "avx2"),
            ("scalar", "scalar"),
        )
    )
