"""The operator of attention."""

from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from lowbit.kernels.attention import native
from lowbit.kernels.operator import operator, traced

_attention_op = operator(
    "attention",
    fake=lambda query, key, value, *_: query.new_empty(
        (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    ),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, bool causal,"
    " str path) -> Tensor",
)(native.attention)


def attention(query: Tensor, key: Tensor, value: Tensor, *how: Any) -> Tensor:
    """softmax(query · keyᵀ · scale + mask) · value, without a gradient: [batch, heads, tokens,
    size] -> [batch, tokens, heads, size]. how: mask, scale, causal, path (see native.attention)."""
    call = query, key, value, *how
    if has_torch_function((query, key, value)):  # TorchFunctionModes see one call
        return handle_torch_function(attention, (query, key, value), *call)
    run = _attention_op if traced() else native.attention
    y: Tensor = run(*call)
    return y
