"""Attention by csrc/attention.h: in float32, or on tiles with operands in bfloat16."""

from collections.abc import Callable

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from lowbit.kernels.native import module

MASKS = {torch.bool: "boolean", torch.float32: "additive"}
UNMASKED: tuple[int, ...] = (0, 0, 0, 0)
_KINDS = {
    dtype: getattr(module.MaskKind, name)
    for dtype, name in ({None: "none"} | MASKS).items()
    if module is not None
}


def attention(
    query: Float32[Tensor, "batch heads queries size"],
    key: Float32[Tensor, "batch key_heads keys size"],
    value: Float32[Tensor, "batch key_heads keys value_size"],
    mask: Shaped[Tensor, "#batch #heads #queries #keys"] | None,
    scale: float,
    causal: bool,
    path: str,
) -> Float32[Tensor, "batch queries heads value_size"]:
    """softmax(query · keyᵀ · scale + mask) · value, of any strides, in memory of its own.

    path: "amx" rounds operands to bfloat16; "avx512", "avx2" and "scalar" do not. A boolean mask is
    true where a key may be seen, one of float32 is added. `causal`: query i sees keys 0 … i.
    Queries that see no key get zeros. The shapes are the caller's to vouch for.
    """
    batch, heads, queries, _ = query.shape
    y = query.new_empty((batch, queries, heads, value.shape[3]))
    in_place(y, scale, causal, path)(query, key, value, mask)
    return y


def in_place(
    y: Float32[Tensor, "batch queries heads value_size"], scale: float, causal: bool, path: str
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], None]:
    """The same for calls that follow each other: query, key, value and mask -> nothing, results
    being written to `y`."""
    assert module is not None
    run = module.attention
    batch, queries, heads, value_size = y.shape

    def call(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        query, key, value = _rows(query), _rows(key), _rows(value)
        _, key_heads, keys, size = key.shape
        kind, at, steps = _KINDS[None], 0, UNMASKED
        if mask is not None:
            mask = _rows(mask if mask.shape[3] == keys else mask.expand(-1, -1, -1, keys))
            kind, at = _KINDS[mask.dtype], mask.data_ptr()
            # What is there once is the same for all.
            steps = tuple(
                0 if n == 1 else step for n, step in zip(mask.shape, mask.stride(), strict=True)
            )
        run(
            query.data_ptr(),
            query.stride(),
            key.data_ptr(),
            key.stride(),
            value.data_ptr(),
            value.stride(),
            kind,
            at,
            steps,
            y.data_ptr(),
            (batch, heads, key_heads, queries, keys, size, value_size),
            scale,
            causal,
            path,
        )

    return call


def _rows(t: Tensor) -> Tensor:
    """t with the numbers of its last dimension side by side."""
    return t if t.stride(-1) == 1 else t.contiguous()
