"""The operator of attention."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from lowbit.errors import UsageError
from lowbit.kernels.attention import native
from lowbit.kernels.checks import check_at_least, check_finite, check_path, check_tensors
from lowbit.kernels.operator import operator, traced

_CPU, _FLOAT = torch.device("cpu"), torch.float32


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    path: str,
) -> None:
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.dim() != 4:
            raise UsageError(f"{name} {list(t.shape)} is not [batch, heads, tokens, size]")
    batch, heads, queries, size = query.shape
    key_heads, keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    check_at_least("the heads of keys", key_heads, 1)
    if heads < 1 or heads % key_heads:
        raise UsageError(f"{heads} heads of queries are no multiple of {key_heads} heads of keys")
    check_at_least("the size of a head", min(size, value_size), 1)
    check_tensors(
        {"query": query, "key": key, "value": value},
        {
            "query": ((batch, heads, queries, size), _FLOAT),
            "key": ((batch, key_heads, keys, size), _FLOAT),
            "value": ((batch, key_heads, keys, value_size), _FLOAT),
        },
        _CPU,
    )
    if mask is not None:
        _check_mask(mask, (batch, heads, queries, keys))
    check_finite("scale", scale)
    check_path(path, "attention_float32", "attention_bfloat16")


def _check_mask(mask: Tensor, scores: tuple[int, ...]) -> None:
    fits = mask.dim() == 4 and all(m in (1, n) for m, n in zip(mask.shape, scores, strict=True))
    if not fits or mask.dtype not in native.MASKS or mask.device != _CPU:
        raise UsageError(
            f"mask is {mask.dtype} {list(mask.shape)} on {mask.device}, expected bool or float32"
            f" that broadcasts to {list(scores)} on {_CPU}"
        )


_attention_op = operator(
    "attention",
    check=_check,
    fake=lambda query, key, value, *_: query.new_empty(
        (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    ),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, bool causal,"
    " str path, float? cap=None, Tensor? sinks=None) -> Tensor",
)(native.attention)


def attention(query: Tensor, key: Tensor, value: Tensor, *how: Any) -> Tensor:
    """softmax(cap(query · keyᵀ · scale) + mask) · value, without a gradient: [batch, heads, tokens,
    size] -> [batch, tokens, heads, size]. how: mask, scale, causal, path, cap, sinks (see
    native.attention)."""
    call = query, key, value, *how
    if has_torch_function((query, key, value)):  # TorchFunctionModes see one call
        return handle_torch_function(attention, (query, key, value), *call)
    run = _attention_op if traced() else native.attention
    y: Tensor = run(*call)
    return y
