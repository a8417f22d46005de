"""Linear layers over stored weights: one table of kernels per kind of activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels.linear import native, reference
from lowbit.kernels.linear.interleaved import Interleaved
from lowbit.kernels.linear.native import Int8Linear
from lowbit.kernels.selection import Kernel, never, select

KERNELS = {
    "float": (Kernel("reference", reference.linear_float, never),),
    "dynamic": (*native.KERNELS, Kernel("reference", reference.linear_dynamic, never)),
}


def linear(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    activations: str,
) -> Float[Tensor, "*tokens out"]:
    """x · Wᵀ + bias with activations "float" or "dynamic" (int8), in x's dtype."""
    kernel, _ = select(KERNELS[activations], x, q)
    y: Tensor = kernel.run(x, q, bias)
    return y


def prepacked(q: QTensor, activations: str) -> Int8Linear | None:
    """The product that serves q once it is prepacked, or None where the stored form is used."""
    x = torch.empty(1, q.in_features, device=next(iter(q.tensors().values())).device)
    kernel, _ = select(KERNELS[activations], x, q)
    if kernel not in native.KERNELS:
        return None
    return Int8Linear(Interleaved.of(q.layout, *q.shape), kernel.name)
