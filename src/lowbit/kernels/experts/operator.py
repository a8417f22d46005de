"""Operators for the experts of a mixture, with stored or packed weights.

One operator computes all linear layers of one projection. The routing of tokens, which depends on
data, is inside the operator, so that models can be exported and compiled.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lowbit.errors import UsageError, check_choice
from lowbit.formats import ExpertsLayout, ExpertsTensor, decode
from lowbit.kernels import experts as kernels
from lowbit.kernels.arguments import (
    CPU,
    assemble,
    check_packed,
    check_stored,
    layout_of,
    layout_text,
    packed_layout,
    rows_of,
    stored_arguments,
)
from lowbit.kernels.checks import (
    check_choices,
    check_dimensions,
    check_ids,
    check_rows,
    check_target,
    check_tensors,
)
from lowbit.kernels.experts.native import IDENTITY, ExpertsProduct
from lowbit.kernels.experts.reference import chosen
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.linear import families
from lowbit.kernels.operator import dispatched, operator


def _check(
    x: Tensor,
    ids: Tensor,
    stored: Sequence[Tensor],
    bias: Tensor | None,
    layout: str,
    activations: str,
) -> None:
    in_features = x.shape[-1] if x.dim() else 0
    check_stored(stored, layout, in_features)
    experts = _experts_of(layout)
    _check_rows(x, ids, in_features, stored[0].device)
    _check_bias(bias, experts, rows_of(stored, layout) // experts, x.device)
    check_choice("activations", activations, kernels.KERNELS)


def _check_packed(
    x: Tensor,
    ids: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    layout: str,
    out_features: int,
    planes: int,
    activations: str,
    target: str,
) -> None:
    in_features = x.shape[-1] if x.dim() else 0
    experts = _experts_of(layout)
    check_packed(packed, layout, out_features, in_features, planes)
    _check_rows(x, ids, in_features, CPU)
    _check_bias(bias, experts, out_features // experts, CPU)
    check_choice("activations", activations, kernels.KERNELS)
    check_target(target, "experts")


def _experts_of(layout: str) -> int:
    """The number of experts of a layout. Raises UsageError if it is not of experts."""
    parsed = layout_of(layout)
    if not isinstance(parsed, ExpertsLayout):
        raise UsageError(f"{parsed} is the layout of one weight, not of experts")
    return parsed.experts


def _check_rows(x: Tensor, ids: Tensor, in_features: int, device: torch.device) -> None:
    """Raises UsageError if the shapes of tokens and ids of experts do not match."""
    check_dimensions("x", x, 2)
    check_rows("x", x, in_features, device)
    check_ids(ids, device)
    check_choices(x, ids)


def _check_bias(bias: Tensor | None, experts: int, rows: int, device: torch.device) -> None:
    if bias is not None:
        check_dimensions("bias", bias, 2)
        check_tensors({"bias": bias}, {"bias": ((experts, rows), bias.dtype)}, device)


def _experts(stored: Sequence[Tensor], layout: str, in_features: int) -> ExpertsTensor:
    q = assemble(stored, layout, in_features)
    assert isinstance(q, ExpertsTensor)
    return q


def _packed(layout: str, out_features: int, in_features: int, planes: int) -> ExpertsPackedLayout:
    form = packed_layout(layout, out_features, in_features, planes)
    assert isinstance(form, ExpertsPackedLayout)
    return form


def _by_experts(grad: Tensor, ids: Tensor, experts: int, weight: Callable[[int], Tensor]) -> Tensor:
    """The gradient of x: the gradient of each result times its expert's weight."""
    found: Tensor | None = None
    for expert, tokens, slots in chosen(ids, experts):
        own = grad[tokens, slots] @ weight(expert)
        if found is None:
            found = own.new_zeros(len(ids), own.shape[1])
        found.index_add_(0, tokens, own)
    return grad.new_zeros(len(ids), weight(0).shape[1]) if found is None else found


def _check_backward(
    grad: Tensor, ids: Tensor, stored: Sequence[Tensor], layout: str, in_features: int
) -> None:
    check_stored(stored, layout, in_features)
    experts = _experts_of(layout)
    _check_gradient(grad, ids, rows_of(stored, layout) // experts, stored[0].device)


def _check_packed_backward(
    grad: Tensor,
    ids: Tensor,
    packed: Tensor,
    layout: str,
    out_features: int,
    in_features: int,
    planes: int,
) -> None:
    experts = _experts_of(layout)
    check_packed(packed, layout, out_features, in_features, planes)
    _check_gradient(grad, ids, out_features // experts, CPU)


def _check_gradient(grad: Tensor, ids: Tensor, rows: int, device: torch.device) -> None:
    """Raises UsageError if `grad` does not have the shape of the results."""
    check_dimensions("grad", grad, 3)
    check_rows("grad", grad, rows, device)
    check_ids(ids, device)
    if ids.dtype is not torch.int64 or ids.shape != grad.shape[:2]:
        raise UsageError(f"ids {list(ids.shape)} do not go with a gradient {list(grad.shape)}")


@operator(
    "experts_linear_backward",
    check=_check_backward,
    fake=lambda grad, ids, stored, layout, in_features: grad.new_empty((len(grad), in_features)),
)
def _backward_op(
    grad: Tensor, ids: Tensor, stored: Sequence[Tensor], layout: str, in_features: int
) -> Tensor:
    q = _experts(stored, layout, in_features)
    return _by_experts(grad, ids, q.experts, lambda i: decode(q.expert(i), grad.dtype))


@operator(
    "experts_linear_packed_backward",
    check=_check_packed_backward,
    fake=lambda grad, ids, packed, layout, out, in_features, planes: grad.new_empty(
        (len(grad), in_features)
    ),
)
def _packed_backward_op(
    grad: Tensor,
    ids: Tensor,
    packed: Tensor,
    layout: str,
    out_features: int,
    in_features: int,
    planes: int,
) -> Tensor:
    form = _packed(layout, out_features, in_features, planes)
    experts = form.layout.experts
    return _by_experts(grad, ids, experts, lambda i: form.expert(packed, i, grad.dtype))


def _of_bias(grad: Tensor, ids: Tensor, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    # One more row, for the id that chooses no expert.
    rows = grad.new_zeros(len(bias) + 1, bias.shape[1])
    return rows.index_add(0, ids.flatten(), grad.flatten(0, 1))[:-1].to(bias.dtype)


@operator(
    "experts_linear",
    check=_check,
    fake=lambda x, ids, stored, bias, layout, activations: x.new_empty(
        (*ids.shape, rows_of(stored, layout) // _experts_of(layout))
    ),
    gradient=lambda grad, x, ids, stored, bias, layout, *_: (
        _backward_op(grad.contiguous(), ids, stored, layout, x.shape[-1]),
        None,
        None,
        _of_bias(grad, ids, bias),
    ),
)
def _experts_linear_op(
    x: Tensor,
    ids: Tensor,
    stored: Sequence[Tensor],
    bias: Tensor | None,
    layout: str,
    activations: str,
) -> Tensor:
    q = _experts(stored, layout, x.shape[-1])
    return kernels.experts_linear(x, ids, q, bias, activations)


def experts_linear(
    x: Tensor, ids: Tensor, q: ExpertsTensor, bias: Tensor | None, activations: str
) -> Tensor:
    """y[t, s] = W[e] x[t] + bias[e] with e = ids[t, s], in x's dtype: x [tokens, in] and ids
    [tokens, slots] -> [tokens, slots, out]. An id that equals the number of experts gives 0."""
    if dispatched(x, bias):
        stored, layout = stored_arguments(q)
        y: Tensor = _experts_linear_op(x, ids, stored, bias, layout, activations)
        return y
    return kernels.experts_linear(x, ids, q, bias, activations)


@operator(
    "experts_linear_packed",
    check=_check_packed,
    fake=lambda x, ids, packed, bias, layout, out_features, *_: x.new_empty(
        (*ids.shape, out_features // _experts_of(layout))
    ),
    gradient=lambda grad, x, ids, packed, bias, layout, out_features, planes, *_: (
        _packed_backward_op(
            grad.contiguous(), ids, packed, layout, out_features, x.shape[-1], planes
        ),
        None,
        None,
        _of_bias(grad, ids, bias),
    ),
)
def _experts_linear_packed_op(
    x: Tensor,
    ids: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    layout: str,
    out_features: int,
    planes: int,
    activations: str,
    target: str,
) -> Tensor:
    form = _packed(layout, out_features, x.shape[-1], planes)
    family = families.family(activations, target)
    return _product(form, activations, target, family)(x, ids, packed, bias)


_product = lru_cache(maxsize=4096)(ExpertsProduct)


def experts_linear_packed(
    x: Tensor,
    ids: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    product: ExpertsProduct,
    gate: str = IDENTITY,
) -> Tensor:
    """`experts_linear` with weights packed for `product`. gate: of the product, only for calls that
    are not `dispatched`."""
    if dispatched(x, bias):
        form = product.form
        weight = layout_text(form.layout), form.out_features, form.planes or 0
        how = product.activations, product.target
        y: Tensor = _experts_linear_packed_op(x, ids, packed, bias, *weight, *how)
        return y
    return product(x, ids, packed, bias, gate)
