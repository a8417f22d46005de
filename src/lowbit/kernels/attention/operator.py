"""The operator of attention."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from lowbit.errors import UsageError, check_at_least
from lowbit.kernels.attention import native
from lowbit.kernels.checks import check_finite, check_target, check_tensors
from lowbit.kernels.native import targets
from lowbit.kernels.operator import operator, traced

_CPU = torch.device("cpu")


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    target: str,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.dim() != 4:
            raise UsageError(f"{name} {list(t.shape)} is not [batch, heads, tokens, size]")
    batch, heads, queries, size = query.shape
    key_heads, keys, value_size = key.shape[1], key.shape[2], value.shape[3]
    check_at_least("the heads of keys", key_heads, 1)
    if heads < 1 or heads % key_heads:
        raise UsageError(f"{heads} query heads are not a multiple of {key_heads} key heads")
    check_at_least("the size of a head", min(size, value_size), 1)
    check_target(target, "attention_float32", "attention_bfloat16")
    tiles = any(target == one.name for one in targets("attention_bfloat16"))
    half = query.dtype is torch.bfloat16 and not tiles
    dtype = torch.bfloat16 if half else torch.float32
    check_tensors(
        {"query": query, "key": key, "value": value},
        {
            "query": ((batch, heads, queries, size), dtype),
            "key": ((batch, key_heads, keys, size), dtype),
            "value": ((batch, key_heads, keys, value_size), dtype),
        },
        _CPU,
    )
    if mask is not None:
        _check_mask(
            mask,
            (batch, heads, queries, keys),
            (torch.bool, torch.float32) if tiles else tuple(native.MASKS),
        )
    check_finite("scale", scale)
    if tiles and (cap is not None or sinks is not None):
        raise UsageError(f"target {target} takes no cap and no sinks: use one of float32")
    if cap is not None:
        check_finite("cap", cap)
        if cap <= 0:
            raise UsageError(f"cap must be above 0, not {cap}")
    if sinks is not None:
        check_tensors({"sinks": sinks}, {"sinks": ((heads,), torch.float32)}, _CPU)


def _check_mask(mask: Tensor, scores: tuple[int, ...], known: tuple[torch.dtype, ...]) -> None:
    fits = mask.dim() == 4 and all(m in (1, n) for m, n in zip(mask.shape, scores, strict=True))
    if not fits or mask.dtype not in known or mask.device != _CPU:
        raise UsageError(
            f"mask is {mask.dtype} {list(mask.shape)} on {mask.device}, expected one of"
            f" {', '.join(map(str, known))} that broadcasts to {list(scores)} on {_CPU}"
        )


_attention_op = operator(
    "attention",
    check=_check,
    fake=lambda query, key, value, *_: query.new_empty(
        (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    ),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, bool causal,"
    " str target, float? cap=None, Tensor? sinks=None) -> Tensor",
)(native.attention)


def attention(query: Tensor, key: Tensor, value: Tensor, *how: Any) -> Tensor:
    """softmax(cap(query · keyᵀ · scale) + mask) · value: [batch, heads, tokens, size] -> [batch,
    tokens, heads, size]. It has no gradient. how: mask, scale, causal, target, cap, sinks (see
    native.attention)."""
    call = query, key, value, *how
    if has_torch_function((query, key, value)):  # TorchFunctionModes see one call
        return handle_torch_function(attention, (query, key, value), *call)
    run = _attention_op if traced() else native.attention
    y: Tensor = run(*call)
    return y
