"""Operators of linear layers, with a stored or a packed weight."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import check_choice
from lowbit.formats import QTensor, StaticScale
from lowbit.kernels import linear as kernels
from lowbit.kernels.arguments import (
    CPU,
    assemble,
    check_packed,
    check_stored,
    layout_text,
    packed_layout,
    rows_of,
    static_arguments,
    static_scale,
    stored_arguments,
)
from lowbit.kernels.checks import check_bias, check_rows, check_static, check_target
from lowbit.kernels.dequantize import dequantize_op
from lowbit.kernels.embedding.operator import embedding_packed_op
from lowbit.kernels.linear import families
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.linear.reference import NONLINEARITIES
from lowbit.kernels.operator import dispatched, operator, shape_alone


def _quick_gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(1.702 * x)
    return grad * (s + 1.702 * x * s * (1 - s))


# The gradients of the nonlinearities, times the gradient of their output.
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "quick_gelu": _quick_gelu_backward,
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "silu": torch.ops.aten.silu_backward,
}


def _gradients(
    grad: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, None, Tensor | None]:
    """Gradients of x, the weight and the bias; codes are frozen. Rounding of activations uses the
    straight-through estimator."""
    own = None if bias is None else grad.reshape(-1, grad.shape[-1]).sum(0).to(bias.dtype)
    return grad @ weight, None, own


def _read(x: Tensor, nonlinearity: str) -> Tensor:
    """The part of x that gradients read: its numbers only if the input of a nonlinearity must be
    recomputed."""
    return x if nonlinearity in _BACKWARD else shape_alone(x)


def _stored_gradients(
    grad: Tensor,
    x: Tensor,
    stored: Sequence[Tensor],
    bias: Tensor | None,
    layout: str,
    activations: str,
    nonlinearity: str,
    *input: Any,
) -> tuple[Tensor | None, ...]:
    if nonlinearity in _BACKWARD:
        before = _linear_op(x, stored, bias, layout, activations, "identity", *input)
        grad = _BACKWARD[nonlinearity](grad, before)
    return _gradients(grad, dequantize_op(stored, layout, x.shape[-1], grad.dtype), bias)


def _check(
    x: Tensor,
    stored: Sequence[Tensor],
    bias: Tensor | None,
    layout: str,
    activations: str,
    nonlinearity: str,
    input_scale: float,
    input_zero_point: int,
) -> None:
    in_features = x.shape[-1] if x.dim() else 0
    check_stored(stored, layout, in_features)
    check_rows("x", x, in_features, stored[0].device)
    check_bias(bias, rows_of(stored, layout), x.device)
    _check_how(activations, nonlinearity, input_scale, input_zero_point)


def _check_how(
    activations: str, nonlinearity: str, input_scale: float, input_zero_point: int
) -> None:
    check_choice("activations", activations, kernels.KERNELS)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    check_static(activations, input_scale, input_zero_point)


@operator(
    "linear",
    check=_check,
    fake=lambda x, stored, bias, layout, *_: x.new_empty((*x.shape[:-1], rows_of(stored, layout))),
    gradient=_stored_gradients,
    reads=lambda x, *others: (_read(x, others[4]), *others),
)
def _linear_op(
    x: Tensor,
    stored: Sequence[Tensor],
    bias: Tensor | None,
    layout: str,
    activations: str,
    nonlinearity: str,
    input_scale: float,
    input_zero_point: int,
) -> Tensor:
    q = assemble(stored, layout, x.shape[-1])
    input = static_scale(input_scale, input_zero_point)
    return kernels.linear(x, q, bias, activations, nonlinearity, input)


def linear(
    x: Tensor,
    q: QTensor,
    bias: Tensor | None,
    activations: str,
    nonlinearity: str = "identity",
    input: StaticScale | None = None,
) -> Tensor:
    """f(x · Wᵀ + bias), x [*, in] -> [*, out] in x's dtype; activations "float", "dynamic", or
    "static" with the scale `input`."""
    if dispatched(x, bias):
        stored, layout = stored_arguments(q)
        how = activations, nonlinearity, *static_arguments(input)
        y: Tensor = _linear_op(x, stored, bias, layout, *how)
        return y
    return kernels.linear(x, q, bias, activations, nonlinearity, input)


def _packed_gradients(
    grad: Tensor,
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    layout: str,
    out_features: int,
    planes: int,
    activations: str,
    nonlinearity: str,
    *others: Any,
) -> tuple[Tensor | None, ...]:
    weight = layout, out_features, planes
    if nonlinearity in _BACKWARD:
        before = _linear_packed_op(x, packed, bias, *weight, activations, "identity", *others)
        grad = _BACKWARD[nonlinearity](grad, before)
    rows, shape = torch.arange(out_features, device=grad.device), (out_features, x.shape[-1])
    decoded = embedding_packed_op(rows, packed, layout, *shape, planes, grad.dtype)
    return _gradients(grad, decoded, bias)


def _check_packed(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    layout: str,
    out_features: int,
    planes: int,
    activations: str,
    nonlinearity: str,
    target: str,
    input_scale: float,
    input_zero_point: int,
) -> None:
    in_features = x.shape[-1] if x.dim() else 0
    check_packed(packed, layout, out_features, in_features, planes)
    check_rows("x", x, in_features, CPU)
    check_bias(bias, out_features, CPU)
    _check_how(activations, nonlinearity, input_scale, input_zero_point)
    check_target(target, "linear")


@operator(
    "linear_packed",
    check=_check_packed,
    fake=lambda x, packed, bias, layout, rows, *_: x.new_empty((*x.shape[:-1], rows)),
    gradient=_packed_gradients,
    reads=lambda x, *others: (_read(x, others[6]), *others),
)
def _linear_packed_op(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    layout: str,
    out_features: int,
    planes: int,
    activations: str,
    nonlinearity: str,
    target: str,
    input_scale: float,
    input_zero_point: int,
) -> Tensor:
    form = packed_layout(layout, out_features, x.shape[-1], planes)
    input = static_scale(input_scale, input_zero_point)
    family = families.family(activations, target)
    return _product(form, activations, target, nonlinearity, input, family)(x, packed, bias)


_product = lru_cache(maxsize=4096)(LinearProduct)


def linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None, product: LinearProduct) -> Tensor:
    """`linear` with a weight packed for `product`."""
    if dispatched(x, bias):
        form = product.form
        weight = layout_text(form.layout), form.out_features, form.planes or 0
        how = product.activations, product.nonlinearity, product.target
        input = static_arguments(product.input)
        y: Tensor = _linear_packed_op(x, packed, bias, *weight, *how, *input)
        return y
    return product(x, packed, bias)
