"""Linear layers of a mixture's experts: one table of kernels per kind of activations, the same as
for linear layers."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lowbit.formats import ExpertsTensor, Layout
from lowbit.kernels.checks import check_choices
from lowbit.kernels.experts import native, reference
from lowbit.kernels.experts.native import ExpertsProduct
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.linear import families
from lowbit.kernels.selection import Kernel, never, select

KERNELS = {
    activations: (
        *native.kernels(activations),
        Kernel("reference", reference.experts_linear, never),
    )
    for activations in ("float", "dynamic")
}


def kernel(
    layout: Layout, in_features: int, device: torch.device, activations: str
) -> tuple[Kernel, str]:
    """The kernel of a weight on this machine, and the reason for its choice; for float activations
    also the family."""
    chosen, why = select(KERNELS[activations], layout, in_features, device)
    return chosen, why if chosen.feature is None else families.reason(why, activations, chosen.name)


def experts_linear(
    x: Float[Tensor, "tokens in"],
    ids: Int64[Tensor, "tokens slots"],
    q: ExpertsTensor,
    bias: Float[Tensor, "experts out"] | None,
    activations: str,
) -> Float[Tensor, "tokens slots out"]:
    """Multiply x by the experts of each token, in x's dtype. Raises UsageError if ids and x differ
    in the number of tokens."""
    check_choices(x, ids)
    device = next(iter(q.stored.values())).device
    chosen, _ = kernel(q.layout, q.in_features, device, activations)
    y: Tensor = chosen.run(x, ids, q, bias, activations)
    return y


def product(form: ExpertsPackedLayout, activations: str) -> ExpertsProduct | None:
    """The product for weights packed as `form`; None if the reference is forced."""
    chosen, _ = kernel(form.layout, form.in_features, torch.device("cpu"), activations)
    return None if chosen.feature is None else ExpertsProduct(form, activations, chosen.name)
