"""Linear layers with quantized weights: one table of kernels per kind of activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from lowbit.formats import Layout, QTensor, StaticScale
from lowbit.kernels.linear import families, native, reference
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.packed_layout import padding
from lowbit.kernels.selection import Kernel, never, select
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout

KERNELS = {
    "float": (*native.kernels("float"), Kernel("reference", reference.linear_float, never)),
    "dynamic": (*native.kernels("dynamic"), Kernel("reference", reference.linear_dynamic, never)),
    "static": (*native.kernels("static"), Kernel("reference", reference.linear_static, never)),
}


def kernel(
    layout: Layout, in_features: int, device: torch.device, activations: str
) -> tuple[Kernel, str]:
    """The kernel of a weight on this machine, and the reason for its choice; for float activations
    also the family."""
    chosen, why = select(KERNELS[activations], layout, in_features, device)
    if chosen.feature is None:
        return chosen, why
    padded = padding(layout, in_features)
    why = families.reason(why, activations, chosen.name)
    return chosen, why if padded is None else f"{why}; {padded}"


def linear(
    x: Float[Tensor, "*tokens in"],
    q: QTensor,
    bias: Float[Tensor, " out"] | None,
    activations: str,
    nonlinearity: str = "identity",
    input: StaticScale | None = None,
) -> Float[Tensor, "*tokens out"]:
    """f(x · Wᵀ + bias) in x's dtype, with activations "float", or int8: "dynamic", or "static" with
    the scale `input`."""
    device = next(iter(q.tensors().values())).device
    chosen, _ = kernel(q.layout, q.in_features, device, activations)
    y: Tensor = chosen.run(x, q, bias, nonlinearity, *(() if input is None else (input,)))
    return y


def product(
    form: AnyPackedLayout,
    activations: str,
    nonlinearity: str = "identity",
    input: StaticScale | None = None,
) -> LinearProduct | None:
    """The product for a weight packed as `form`; None if the reference is forced."""
    chosen, _ = kernel(form.layout, form.in_features, torch.device("cpu"), activations)
    if chosen.feature is None:
        return None
    return LinearProduct(form, activations, chosen.name, nonlinearity, input)
