"""The operators: schema, fake version, gradient, and the way in for modules.

    lowbit::dequantize(Tensor[] stored, str layout, int in_features, ScalarType dtype) -> Tensor
    lowbit::linear(Tensor x, Tensor[] stored, Tensor? bias, str layout, str activations,
                   str nonlinearity, float input_scale, int input_zero_point) -> Tensor
    lowbit::linear_packed(Tensor x, Tensor packed, Tensor? bias, str layout, int out_features,
                             int planes, str activations, str nonlinearity, str path,
                             float input_scale, int input_zero_point) -> Tensor
    lowbit::embedding(Tensor ids, Tensor[] stored, str layout, int in_features,
                      ScalarType dtype) -> Tensor
    lowbit::embedding_packed(Tensor ids, Tensor packed, str layout, int num_embeddings,
                                int in_features, int planes, ScalarType dtype) -> Tensor
    lowbit::quantize_rows(Tensor x, int group_size) -> (Tensor, Tensor)
    lowbit::attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale,
                      bool causal, str path) -> Tensor

`stored` are the tensors of a stored form in the order of its layout, and `layout` is that layout
as a Python literal, so that one operator serves all formats and bit widths; of a packed
binary weight the first `planes` are used, 0 for all (and for affine ones). Static activations have
the scale `input_scale`, which is 0 for others. In eager
inference modules skip the dispatcher, which costs more than a small product; tracing and autograd
go through it.
"""

import ast
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from lowbit.formats import (
    Layout,
    QTensor,
    StackedLayout,
    StaticScale,
    decode,
    layout_from_dict,
)
from lowbit.kernels import linear as _linear
from lowbit.kernels import quantize_rows as _quantize_rows
from lowbit.kernels.attention import native as _native_attention
from lowbit.kernels.checks import check_bias, check_float, check_packed, check_stored
from lowbit.kernels.embedding import native as _native_embedding
from lowbit.kernels.embedding import reference as _reference_embedding
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.packed_layout import unsupported
from lowbit.kernels.stacked_packed_layout import AnyPackedLayout, packed_layout_of


def layout_text(layout: Layout) -> str:
    """The layout as the operators take it; plain enough to be traced."""
    return str(layout.to_dict())


@lru_cache(maxsize=4096)
def _layout(text: str) -> Layout:
    return layout_from_dict(ast.literal_eval(text))


def _assemble(stored: Sequence[Tensor], layout: str, in_features: int) -> QTensor:
    parsed = _layout(layout)
    named = dict(zip(parsed.names, stored, strict=True))
    check_stored(named, parsed.tensors(_rows(stored, layout), in_features))
    return parsed.assemble(named, in_features)


def _rows(stored: Sequence[Tensor], layout: str) -> int:
    """Output rows: of a stack as its layout has it, else the second last dimension of codes
    [out, …] and planes [bits, out, …]."""
    parsed = _layout(layout)
    return parsed.rows if isinstance(parsed, StackedLayout) else stored[0].shape[-2]


@torch.library.custom_op("lowbit::dequantize", mutates_args=())
def _dequantize_op(
    stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype
) -> Tensor:
    return decode(_assemble(stored, layout, in_features), dtype)


@_dequantize_op.register_fake
def _(stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype) -> Tensor:
    return stored[0].new_empty((_rows(stored, layout), in_features), dtype=dtype)


# d out / d in of the nonlinearities, times the gradient of what comes out.
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "silu": torch.ops.aten.silu_backward,
}


@torch.library.custom_op("lowbit::linear", mutates_args=())
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
    check_float("x", x)
    q = _assemble(stored, layout, x.shape[-1])
    check_bias(bias, q.shape[0], x.device)
    known = _static(input_scale, input_zero_point)
    return _linear.linear(x, q, bias, activations, nonlinearity, known)


def _static(scale: float, zero_point: int) -> StaticScale | None:
    return StaticScale(scale, zero_point) if scale else None


@_linear_op.register_fake
def _(
    x: Tensor,
    stored: Sequence[Tensor],
    bias: Tensor | None,
    layout: str,
    activations: str,
    nonlinearity: str,
    input_scale: float,
    input_zero_point: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], _rows(stored, layout)))


def _save_for_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, stored, bias, ctx.layout, ctx.activations, ctx.nonlinearity, *ctx.input = inputs
    ctx.save_for_backward(x, bias, *stored)


def _linear_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Of x and the bias; codes are frozen. int8 activations pass straight through."""
    x, bias, *stored = ctx.saved_tensors
    if ctx.nonlinearity in _BACKWARD:
        before = _linear_op(x, stored, bias, ctx.layout, ctx.activations, "identity", *ctx.input)
        grad = _BACKWARD[ctx.nonlinearity](grad, before)
    weight = _dequantize_op(stored, ctx.layout, x.shape[-1], grad.dtype)
    frozen = (None,) * 5
    return grad @ weight, [None] * len(stored), _bias_gradient(bias, grad), *frozen


def _bias_gradient(bias: Tensor | None, grad: Tensor) -> Tensor | None:
    return None if bias is None else grad.reshape(-1, grad.shape[-1]).sum(0).to(bias.dtype)


_linear_op.register_autograd(_linear_gradient, setup_context=_save_for_linear)


@lru_cache(maxsize=4096)
def _form(layout: str, out_features: int, in_features: int, planes: int) -> AnyPackedLayout:
    """Raises ValueError for a shape or a number of planes that cannot be packed."""
    parsed = _layout(layout)
    refusal = unsupported(parsed, in_features, torch.device("cpu"))
    if planes and planes not in getattr(parsed, "prefixes", ()):
        refusal = f"there are no parameters for {planes} planes"
    if out_features < 1:
        refusal = f"a weight of {out_features} rows"
    if refusal:
        raise ValueError(f"such a weight cannot be prepacked: {refusal}")
    return packed_layout_of(parsed, out_features, in_features, planes or None)


@lru_cache(maxsize=4096)
def _product(
    form: AnyPackedLayout, activations: str, nonlinearity: str, path: str, input: StaticScale | None
) -> LinearProduct:
    return LinearProduct(form, activations, path, nonlinearity, input)


@torch.library.custom_op("lowbit::linear_packed", mutates_args=())
def _linear_packed_op(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    layout: str,
    out_features: int,
    planes: int,
    activations: str,
    nonlinearity: str,
    path: str,
    input_scale: float,
    input_zero_point: int,
) -> Tensor:
    check_float("x", x)
    form = _form(layout, out_features, x.shape[-1], planes)
    check_packed(packed, form)
    check_bias(bias, out_features, x.device)
    known = _static(input_scale, input_zero_point)
    return _product(form, activations, nonlinearity, path, known)(x, packed, bias)


@_linear_packed_op.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    layout: str,
    out_features: int,
    planes: int,
    activations: str,
    nonlinearity: str,
    path: str,
    input_scale: float,
    input_zero_point: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _save_for_linear_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, bias, *ctx.arguments = inputs
    ctx.save_for_backward(x, packed, bias)


def _linear_packed_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, packed, bias = ctx.saved_tensors
    layout, out_features, planes, activations, nonlinearity, path, *input = ctx.arguments
    if nonlinearity in _BACKWARD:
        before = _linear_packed_op(
            x, packed, bias, layout, out_features, planes, activations, "identity", path, *input
        )
        grad = _BACKWARD[nonlinearity](grad, before)
    rows = torch.arange(out_features, device=grad.device)
    weight = _embedding_packed_op(
        rows, packed, layout, out_features, x.shape[-1], planes, grad.dtype
    )
    return grad @ weight, None, _bias_gradient(bias, grad), *[None] * len(ctx.arguments)


_linear_packed_op.register_autograd(_linear_packed_gradient, setup_context=_save_for_linear_packed)


@torch.library.custom_op("lowbit::embedding", mutates_args=())
def _embedding_op(
    ids: Tensor, stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype
) -> Tensor:
    return _reference_embedding.embedding(ids, _assemble(stored, layout, in_features), dtype)


@_embedding_op.register_fake
def _(
    ids: Tensor, stored: Sequence[Tensor], layout: str, in_features: int, dtype: torch.dtype
) -> Tensor:
    return stored[0].new_empty((*ids.shape, in_features), dtype=dtype)


@torch.library.custom_op("lowbit::embedding_packed", mutates_args=())
def _embedding_packed_op(
    ids: Tensor,
    packed: Tensor,
    layout: str,
    num_embeddings: int,
    in_features: int,
    planes: int,
    dtype: torch.dtype,
) -> Tensor:
    form = _form(layout, num_embeddings, in_features, planes)
    check_packed(packed, form)
    return _native_embedding.embedding(ids, packed, form, dtype)


@_embedding_packed_op.register_fake
def _(
    ids: Tensor,
    packed: Tensor,
    layout: str,
    num_embeddings: int,
    in_features: int,
    planes: int,
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty((*ids.shape, in_features), dtype=dtype)


@torch.library.custom_op("lowbit::quantize_rows", mutates_args=())
def quantize_rows(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """x [rows, cols] -> int8 codes [rows, cols] and float32 scales [rows, groups]."""
    return _quantize_rows.quantize_rows(x, group_size)


@quantize_rows.register_fake
def _(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    scales = (x.shape[0], -(-x.shape[1] // group_size))
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(scales, dtype=torch.float32)


_attention_op = torch.library.custom_op(
    "lowbit::attention",
    _native_attention.attention,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, bool causal,"
    " str path) -> Tensor",
)


@_attention_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> Tensor:
    batch, heads, queries, _size = query.shape
    return query.new_empty((batch, queries, heads, value.shape[-1]))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    path: str,
) -> Tensor:
    """softmax(query · keyᵀ · scale + mask) · value, without a gradient: [batch, heads, tokens,
    size] -> [batch, tokens, heads, size] (see kernels/attention/native.py)."""
    call = query, key, value, mask, scale, causal, path
    if has_torch_function((query, key, value)):  # whoever watches calls sees one
        return handle_torch_function(attention, (query, key, value), *call)
    if traced():
        return _attention_op(*call)
    return _native_attention.attention(*call)


def dequantize(q: QTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out, in] as floats."""
    return _dequantize_op(list(q.tensors().values()), layout_text(q.layout), q.in_features, dtype)


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
        stored, layout = list(q.tensors().values()), layout_text(q.layout)
        return _linear_op(x, stored, bias, layout, activations, nonlinearity, *_values(input))
    return _linear.linear(x, q, bias, activations, nonlinearity, input)


def _values(input: StaticScale | None) -> tuple[float, int]:
    return (0.0, 0) if input is None else (input.scale, input.zero_point)


def linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None, product: LinearProduct) -> Tensor:
    """The same with a weight that was packed as `product` wants it."""
    if dispatched(x, bias):
        return _linear_packed_op(
            x,
            packed,
            bias,
            layout_text(product.form.layout),
            product.out_features,
            product.form.planes or 0,
            product.activations,
            product.nonlinearity,
            product.path,
            *_values(product.input),
        )
    return product(x, packed, bias)


# Found here once: they are asked at every call.
_compiling, _tracing = torch.compiler.is_compiling, torch._C._get_tracing_state


def dispatched(x: Tensor, bias: Tensor | None) -> bool:
    """Whether the call must be seen by autograd, a compiler or a tracer."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    return _compiling() or _tracing() is not None


def traced() -> bool:
    """Whether what is called now is written down, to be called again with other numbers."""
    return _compiling() or _tracing() is not None


def embedding(ids: Tensor, q: QTensor, dtype: torch.dtype) -> Tensor:
    """Rows of q -> [*ids, in]. Raises IndexError for an id outside the table."""
    if traced():
        return _embedding_op(
            ids, list(q.tensors().values()), layout_text(q.layout), q.in_features, dtype
        )
    return _reference_embedding.embedding(ids, q, dtype)


def embedding_packed(
    ids: Tensor, packed: Tensor, form: AnyPackedLayout, dtype: torch.dtype
) -> Tensor:
    """The same from a packed table."""
    if traced():
        layout = layout_text(form.layout)
        return _embedding_packed_op(
            ids, packed, layout, form.out_features, form.in_features, form.planes or 0, dtype
        )
    return _native_embedding.embedding(ids, packed, form, dtype)
