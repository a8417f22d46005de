"""Attention by csrc/attention.h: operands in bfloat16, sums in float32."""

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from lowbit.kernels.native import module

MASKS = {torch.bool: "boolean", torch.float32: "additive"}


def attention(
    query: Float32[Tensor, "batch heads queries size"],
    key: Float32[Tensor, "batch key_heads keys size"],
    value: Float32[Tensor, "batch key_heads keys value_size"],
    mask: Shaped[Tensor, "#batch #heads #queries #keys"] | None,
    scale: float,
    causal: bool,
) -> Float32[Tensor, "batch queries heads value_size"]:
    """softmax(query · keyᵀ · scale + mask) · value, of any strides, in memory of its own.

    A boolean mask is true where a key may be seen, one of float32 is added. `causal`: query i sees
    keys 0 … i. Queries that see no key get zeros. The shapes are the caller's to vouch for.
    """
    assert module is not None
    query, key, value = _rows(query), _rows(key), _rows(value)
    batch, heads, queries, size = query.shape
    key_heads, keys, value_size = value.shape[1:]
    y = query.new_empty((batch, queries, heads, value_size))
    kind, at = "none", 0
    steps: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        mask = _rows(mask.expand(batch, heads, queries, keys))
        kind, at, steps = MASKS[mask.dtype], mask.data_ptr(), mask.stride()
    module.attention(
        query.data_ptr(),
        query.stride(),
        key.data_ptr(),
        key.stride(),
        value.data_ptr(),
        value.stride(),
        getattr(module.MaskKind, kind),
        at,
        steps,
        y.data_ptr(),
        (batch, heads, key_heads, queries, keys, size, value_size),
        scale,
        causal,
    )
    return y


def _rows(t: Tensor) -> Tensor:
    """t with the numbers of its last dimension side by side."""
    return t if t.stride(-1) == 1 else t.contiguous()
