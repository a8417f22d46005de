"""Operators of a mixture's experts, over stored weights and over packed ones.

One is all linear layers of one projection: what data decides, which expert sees which token, stays
inside, so that a model that uses it can be exported and compiled.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lowbit.formats import ExpertsLayout, ExpertsTensor, decode
from lowbit.kernels import experts as kernels
from lowbit.kernels.arguments import (
    assemble,
    layout_text,
    packed_layout,
    rows_of,
    stored_arguments,
)
from lowbit.kernels.checks import check_float
from lowbit.kernels.experts.native import ExpertsProduct
from lowbit.kernels.experts.reference import chosen
from lowbit.kernels.experts_packed_layout import ExpertsPackedLayout
from lowbit.kernels.operator import dispatched, operator


def _stored(stored: Sequence[Tensor], layout: str, in_features: int) -> ExpertsTensor:
    q = assemble(stored, layout, in_features)
    if not isinstance(q, ExpertsTensor):
        raise ValueError(f"a weight of {q.layout} holds no experts")
    return q


def _packed(
    packed: Tensor, layout: str, out_features: int, in_features: int, planes: int
) -> ExpertsPackedLayout:
    form = packed_layout(packed, layout, out_features, in_features, planes)
    if not isinstance(form, ExpertsPackedLayout):
        raise ValueError(f"a weight of {form.layout} holds no experts")
    return form


def _check(x: Tensor, ids: Tensor, bias: Tensor | None, layout: ExpertsLayout, rows: int) -> None:
    """Raises ValueError for what does not fit such experts."""
    check_float("x", x)
    if x.dim() != 2 or ids.dim() != 2 or len(x) != len(ids) or x.device != ids.device:
        raise ValueError(
            f"ids {list(ids.shape)} on {ids.device} do not choose experts for x {list(x.shape)} on"
            f" {x.device}: [tokens, in] and [tokens, slots] are needed"
        )
    if ids.dtype is not torch.int64:
        raise ValueError(f"ids of experts are {ids.dtype}, not torch.int64")
    if bias is not None and (
        tuple(bias.shape) != (layout.experts, rows) or bias.device != x.device
    ):
        raise ValueError(
            f"bias {list(bias.shape)} on {bias.device} does not fit {layout.experts} experts with"
            f" {rows} outputs on {x.device}"
        )


def _by_experts(grad: Tensor, ids: Tensor, experts: int, weight: Callable[[int], Tensor]) -> Tensor:
    """The gradient of x: that of each result through the expert that made it."""
    found: Tensor | None = None
    for expert, tokens, slots in chosen(ids, experts):
        own = grad[tokens, slots] @ weight(expert)
        if found is None:
            found = own.new_zeros(len(ids), own.shape[1])
        found.index_add_(0, tokens, own)
    return grad.new_zeros(len(ids), weight(0).shape[1]) if found is None else found


@operator(
    "experts_linear_backward",
    fake=lambda grad, ids, stored, layout, in_features: grad.new_empty((len(grad), in_features)),
)
def _backward_op(
    grad: Tensor, ids: Tensor, stored: Sequence[Tensor], layout: str, in_features: int
) -> Tensor:
    q = _stored(stored, layout, in_features)
    return _by_experts(grad, ids, q.experts, lambda i: decode(q.expert(i), grad.dtype))


@operator(
    "experts_linear_packed_backward",
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
    form = _packed(packed, layout, out_features, in_features, planes)
    experts = form.layout.experts
    return _by_experts(grad, ids, experts, lambda i: form.expert(packed, i, grad.dtype))


def _of_bias(grad: Tensor, ids: Tensor, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    # One row more, for the id that chooses none.
    rows = grad.new_zeros(len(bias) + 1, bias.shape[1])
    return rows.index_add(0, ids.flatten(), grad.flatten(0, 1))[:-1].to(bias.dtype)


@operator(
    "experts_linear",
    fake=lambda x, ids, stored, bias, layout, experts, activations: x.new_empty(
        (*ids.shape, rows_of(stored, layout) // experts)
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
    experts: int,
    activations: str,
) -> Tensor:
    q = _stored(stored, layout, x.shape[-1])
    _check(x, ids, bias, q.layout, q.rows)
    return kernels.experts_linear(x, ids, q, bias, activations)


def experts_linear(
    x: Tensor, ids: Tensor, q: ExpertsTensor, bias: Tensor | None, activations: str
) -> Tensor:
    """y[t, s] = W[e] x[t] + bias[e] with e = ids[t, s], in x's dtype: x [tokens, in] and ids
    [tokens, slots] -> [tokens, slots, out]. An id that equals the number of experts gives 0."""
    if dispatched(x, bias):
        stored, layout = stored_arguments(q)
        y: Tensor = _experts_linear_op(x, ids, stored, bias, layout, q.experts, activations)
        return y
    return kernels.experts_linear(x, ids, q, bias, activations)


@operator(
    "experts_linear_packed",
    fake=lambda x, ids, packed, bias, layout, experts, out_features, *_: x.new_empty(
        (*ids.shape, out_features // experts)
    ),
    gradient=lambda grad, x, ids, packed, bias, layout, experts, out_features, planes, *_: (
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
    experts: int,
    out_features: int,
    planes: int,
    activations: str,
    path: str,
) -> Tensor:
    form = _packed(packed, layout, out_features, x.shape[-1], planes)
    _check(x, ids, bias, form.layout, form.rows)
    return _product(form, activations, path)(x, ids, packed, bias)


_product = lru_cache(maxsize=4096)(ExpertsProduct)


def experts_linear_packed(
    x: Tensor, ids: Tensor, packed: Tensor, bias: Tensor | None, product: ExpertsProduct
) -> Tensor:
    """The same with weights that are packed as `product` wants them."""
    if dispatched(x, bias):
        form = product.form
        weight = layout_text(form.layout), form.layout.experts, form.out_features, form.planes or 0
        how = product.activations, product.path
        y: Tensor = _experts_linear_packed_op(x, ids, packed, bias, *weight, *how)
        return y
    return product(x, ids, packed, bias)
