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
    target: str,
    cap: float | None = None,
    sinks: Float32[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch queries heads value_size"]:
    """softmax(cap(query · keyᵀ · scale) + mask) · value, for any strides, as a new tensor.

    Query, key, value and result are all float32 or all bfloat16; arithmetic is in float32.

    target: one of native.targets("attention_float32"), or of "attention_bfloat16", which rounds
    float32 operands and has neither cap nor sinks. A boolean mask is true for visible keys; a
    float32 or bfloat16 mask is added. cap: scores x become cap · tanh(x / cap). sinks: for each
    head, the score of one more key without a value. causal: query i sees keys 0 … i. A query
    without visible keys gives zeros. The caller must check the shapes of query, key and value.
    Raises UsageError if the mask does not broadcast to the scores.
    """
    batch, heads, queries, _ = query.shape
    y = query.new_empty((batch, queries, heads, value.shape[3]))
    in_place(y, query, key, scale, causal, target, cap, sinks)(query, key, value, mask)
    return y


def in_place(
    y: Float[Tensor, "batch queries heads value_size"],
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch key_heads keys size"],
    scale: float,
    causal: bool,
    target: str,
    cap: float | None = None,
    sinks: Float32[Tensor, " heads"] | None = None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], None]:
    """A function (query, key, value, mask) for repeated calls, which writes its results to `y`. Of
    `query` and `key` only shapes and strides are read; the number of keys may change."""
    run = _target(y, query, key, scale, causal, target, cap)
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
    target: str,
    cap: float | None = None,
    sinks: Float32[Tensor, " heads"] | None = None,
) -> Callable[[int, int, int, Tensor, Tensor, int, Tensor | None], None]:
    """A function for repeated calls with a KV cache: it appends the keys and values of new tokens.

    Its arguments: the addresses of query, key and value; the cached keys and values [batch,
    key_heads, capacity, …]; the used length; a mask. Tensors at the addresses must have the shapes
    and strides of those given here, with a contiguous last dimension. Results go to `y`."""
    run = _target(y, query, key, scale, causal, target, cap).append
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


def _target(
    y: Tensor,
    query: Tensor,
    key: Tensor,
    scale: float,
    causal: bool,
    target: str,
    cap: float | None,
) -> Any:
    assert module is not None
    batch, queries, heads, value_size = y.shape
    sizes = (batch, heads, key.shape[1], queries, query.shape[3], value_size)
    half = query.dtype is torch.bfloat16
    return module.AttentionTarget(target, sizes, scale, cap or 0.0, causal, half)


def _over(mask: Tensor | None, y: Tensor, keys: int) -> Tensor | None:
    """The mask with one number per key. Raises UsageError if it does not broadcast to the scores of
    the results y."""
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
    """The kind, address and steps of a mask."""
    if mask is None:
        return UNMASKED
    # A dimension of size 1 has step 0: it is broadcast.
    steps = tuple(0 if n == 1 else step for n, step in zip(mask.shape, mask.stride(), strict=True))
    return _KINDS[mask.dtype], mask.data_ptr(), steps


def _rows(t: Tensor) -> Tensor:
    """t with a contiguous last dimension."""
    return t if t.stride(-1) == 1 else t.contiguous()
