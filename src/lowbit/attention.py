"""Attention by our own code, registered with transformers under two names.

    model.set_attn_implementation("lowbit")
    model.set_attn_implementation("lowbit_float32")

Scores, softmax and values of float32 models are computed in one call (csrc/attention.h), in
float32. Where the processor has tiles, "lowbit" computes many queries from operands in bfloat16:
sums stay float32, and the result of one attention is off by 0.3 % (relative Frobenius error on
normal operands). Masks, caches and cross-attention are handled by transformers' own code around it.
What is not served goes to that code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import (
    create_position_bias_mask,
    sdpa_attention_forward,
)
from transformers.masking_utils import sdpa_mask

from lowbit.kernels import ops
from lowbit.kernels.attention.native import MASKS
from lowbit.kernels.selection import Kernel, never, select

# Fewer are done sooner in float32, as tiles are filled anew at every call.
MANY_QUERIES = 8
# What only transformers' own code knows to handle, or to refuse.
FOREIGN = ("cache", "softcap")


def unsupported(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    options: dict[str, Any] | None = None,
) -> str | None:
    """Why our own code does not serve such a call, or None: query [batch, heads, queries, size],
    key and value [batch, key heads, keys, size], mask [batch, heads, queries, keys] or broadcast.
    """
    options = options or {}
    operands = {"query": query, "key": key, "value": value}
    for name, t in operands.items():
        if not t.is_cpu:
            return f"the {name} is on {t.device}, not on the CPU"
        if t.dtype is not torch.float32:
            return f"the {name} is {t.dtype}, not float32"
        if t.numel() == 0:
            return f"the {name} {list(t.shape)} is empty"
    if not _fit(query, key, value):
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in operands.items())
        return f"{shapes} are not those of one attention"
    if mask is not None and (mask.dtype not in MASKS or mask.dim() != 4 or not mask.is_cpu):
        return f"a mask {list(mask.shape)} of {mask.dtype} on {mask.device} is not served"
    if dropout:
        return f"dropout {dropout} belongs to training"
    for name in FOREIGN:
        if options.get(name) is not None:
            return f"{name} is asked for"
    tracked = *operands.values(), mask, options.get("position_bias")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tracked):
        return "gradients are asked for"
    return None


def _fit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    (batch, heads, _, size), (key_batch, key_heads, _, key_size) = query.shape, key.shape
    same = batch == key_batch and size == key_size and key.shape[:3] == value.shape[:3]
    return same and heads % key_heads == 0


def _unsupported_on_tiles(query: Tensor, *call: Any) -> str | None:
    if query.shape[2] < MANY_QUERIES:
        return f"{query.shape[2]} queries are fewer than {MANY_QUERIES}"
    return unsupported(query, *call)


def _unsupported_in_scalar_code(query: Tensor, *call: Any) -> str | None:
    if query.shape[2] >= MANY_QUERIES:
        return f"{query.shape[2]} queries are not fewer than {MANY_QUERIES}: torch is faster"
    return unsupported(query, *call)


def _of_transformers(module: nn.Module, *call: Any) -> tuple[Tensor, None]:
    *operands, options = call
    return sdpa_attention_forward(module, *operands, **options)


def _own(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    options: dict[str, Any],
    *,
    path: str,
) -> tuple[Tensor, None]:
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    causal = causal and mask is None and query.shape[2] > 1
    bias = options.get("position_bias")
    if bias is not None:
        mask, causal = create_position_bias_mask(bias, mask, causal, query, key), False
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ops.attention(query, key, value, mask, scale, causal, path), None


_FLOAT32 = (
    *(
        Kernel(path, partial(_own, path=path), refuses, isa=path)
        for path, refuses in (
            ("avx512", unsupported),
            ("avx2", unsupported),
            ("scalar", _unsupported_in_scalar_code),
        )
    ),
    Kernel("reference", _of_transformers, never),
)
_TILES = Kernel("amx", partial(_own, path="amx"), _unsupported_on_tiles, isa="amx")
# By name; each takes the arguments of `unsupported`.
KERNELS: dict[str, tuple[Kernel, ...]] = {
    "lowbit": (_TILES, *_FLOAT32),
    "lowbit_float32": _FLOAT32,
}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    *,
    kernels: Sequence[Kernel],
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [batch, heads, tokens, size] -> [batch, tokens, heads, size]."""
    call = query, key, value, attention_mask, dropout, options
    kernel, _ = select(kernels, *call)
    y: tuple[Tensor, None] = kernel.run(module, *call)
    return y


@contextmanager
def instead_of_sdpa(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The attention `name` where the model has transformers' default, which is restored."""
    if model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def register() -> None:
    """Make transformers know both names and their masks, which are those of "sdpa"."""
    for name, kernels in KERNELS.items():
        AttentionInterface.register(name, partial(attention, kernels=kernels))
        AttentionMaskInterface.register(name, sdpa_mask)
