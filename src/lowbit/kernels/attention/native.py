"""Attention by csrc/attention.h: in float32, or on tiles with operands rounded to bfloat16."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.kernels.native import module

MASKS = {
    torch.bool: "boolean",
    torch.float32: "additive",
    torch.bfloat16: "additive_bfloat16",
}
_KINDS = {
    dtype: getattr(module.MaskKind, name)
    for dtype, name in ({None: "none"} | MASKS).items()
    if module is not None
}
UNMASKED = _KINDS.get(None), 0, (0, 0, 0, 0)


def attention(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch key_heads keys size"],
    value: Float[Tensor, "batch key_heads keys value_size"],
    mask: Shaped[Tensor, "#batch #heads #queries #keys"] | None,
    scale: float,
    causal: bool,
    path: str,
    cap: float | None = None,
    sinks: Float32[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch queries heads value_size"]:
    """softmax(cap(query · keyᵀ · scale) + mask) · value, of any strides, in memory of its own.

    Query, key, value and result are all float32 or all bfloat16; arithmetic is in float32.

    path: one of native.paths("attention_float32"), or of "attention_bfloat16", which takes float32
    and rounds it, without a cap or sinks. A boolean mask is true where a key may be seen, one of
    float32 or bfloat16 is added. cap: scores x become cap · tanh(x / cap). sinks: a head's score of
    one more key, which has no value. `causal`: query i sees keys 0 … i. Queries that see no key get
    zeros. The shapes of query, key and value are the caller's to vouch for. Raises UsageError for a
    mask that does not broadcast to the scores.
    """
    batch, heads, queries, _ = query.shape
    y = query.new_empty((batch, queries, heads, value.shape[3]))
    in_place(y, query, key, scale, causal, path, cap, sinks)(query, key, value, mask)
    return y


def in_place(
    y: Float[Tensor, "batch queries heads value_size"],
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch key_heads keys size"],
    scale: float,
    causal: bool,
    path: str,
    cap: float | None = None,
    sinks: Float32[Tensor, " heads"] | None = None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], None]:
    """The same for calls that follow each other: query, key, value and mask -> nothing, results
    being written to `y`. Of `query` and `key` only what they have in common with those of the calls
    is read: all but how many keys there are."""
    run = _path(y, query, key, scale, causal, path, cap)
    sinks = None if sinks is None else sinks.contiguous()

    def call(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        query, key, value = _rows(query), _rows(key), _rows(value)
        keys = key.shape[2]
        mask = _over(mask, y, keys)
        run(
            query.data_ptr(),
            query.stride(),
            key.data_ptr(),
            key.stride(),
            value.data_ptr(),
            value.stride(),
            keys,
            *_mask(mask),
            0 if sinks is None else sinks.data_ptr(),
            y.data_ptr(),
        )

    return call


def appending(
    y: Float[Tensor, "batch queries heads value_size"],
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch key_heads new size"],
    value: Float[Tensor, "batch key_heads new value_size"],
    scale: float,
    causal: bool,
    path: str,
    cap: float | None = None,
    sinks: Float32[Tensor, " heads"] | None = None,
) -> Callable[[int, int, int, Tensor, Tensor, int, Tensor | None], None]:
    """The same where `key` and `value` are those of new tokens, which go behind held ones.

    The addresses of query, key and value, the held keys and values [batch, key_heads, room, …], how
    many of them are filled, and a mask -> nothing. What is at the addresses is as the tensors given
    here, which have the numbers of their last dimension side by side."""
    run = _path(y, query, key, scale, causal, path, cap).append
    sinks = None if sinks is None else sinks.contiguous()
    steps, key_steps, value_steps = query.stride(), key.stride(), value.stride()
    new = key.shape[2]

    def call(
        query: int,
        key: int,
        value: int,
        held_keys: Tensor,
        held_values: Tensor,
        filled: int,
        mask: Tensor | None,
    ) -> None:
        mask = _over(mask, y, filled + new)
        run(
            query,
            steps,
            key,
            key_steps,
            value,
            value_steps,
            new,
            held_keys.data_ptr(),
            held_values.data_ptr(),
            held_keys.shape[2],
            filled,
            *_mask(mask),
            0 if sinks is None else sinks.data_ptr(),
            y.data_ptr(),
        )

    return call


def _path(
    y: Tensor,
    query: Tensor,
    key: Tensor,
    scale: float,
    causal: bool,
    path: str,
    cap: float | None,
) -> Any:
    assert module is not None
    batch, queries, heads, value_size = y.shape
    sizes = (batch, heads, key.shape[1], queries, query.shape[3], value_size)
    half = query.dtype is torch.bfloat16
    return module.AttentionPath(path, sizes, scale, cap or 0.0, causal, half)


def _over(mask: Tensor | None, y: Tensor, keys: int) -> Tensor | None:
    """The mask with a number for every key. Raises UsageError for one that does not broadcast to
    the scores of the results y."""
    if mask is None:
        return None
    batch, queries, heads, _ = y.shape
    scores = batch, heads, queries, keys
    if len(mask.shape) != 4 or any(
        n not in (1, m) for n, m in zip(mask.shape, scores, strict=True)
    ):
        raise UsageError(f"mask {list(mask.shape)} does not broadcast to {list(scores)}")
    return _rows(mask.expand(-1, -1, -1, keys))


def _mask(mask: Tensor | None) -> tuple[Any, int, tuple[int, ...]]:
    """Its kind, its address and its steps."""
    if mask is None:
        return UNMASKED
    # What is there once is the same for all.
    steps = tuple(0 if n == 1 else step for n, step in zip(mask.shape, mask.stride(), strict=True))
    return _KINDS[mask.dtype], mask.data_ptr(), steps


def _rows(t: Tensor) -> Tensor:
    """t with the numbers of its last dimension side by side."""
    return t if t.stride(-1) == 1 else t.contiguous()
