"""Linear layers over stored weights: one table of kernels per kind of activations."""

from jaxtyping import Float
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.kernels.linear import reference
from lowbit.kernels.selection import Kernel, never, select

KERNELS = {
    "float": (Kernel("reference", reference.linear_float, never),),
    "dynamic": (Kernel("reference", reference.linear_dynamic, never),),
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
