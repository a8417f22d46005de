"""Attention in bfloat16, registered with transformers as "lowbit".

    model.set_attn_implementation("lowbit")

Scores, softmax and values of float32 models are computed in one call, from operands in bfloat16,
where the processor has tiles for them; sums stay float32 (csrc/attention.h). The result of one
attention is off by 0.3 % (relative Frobenius error on normal operands). Masks, caches and
cross-attention are handled by transformers' own code around it. What it does not serve goes to that
code in float32; `choose` says which, and why.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import (
    create_position_bias_mask,
    sdpa_attention_forward,
)
from transformers.masking_utils import sdpa_mask

from lowbit.kernels import ops
from lowbit.kernels.attention.native import MASKS
from lowbit.kernels.selection import Kernel, never, select

NAME = "lowbit"
# Fewer queries are done sooner in float32: keys and values are converted at every call.
LEAST_QUERIES = 8
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
    """Why bfloat16 does not serve such a call, or None: query [batch, heads, queries, size], key
    and value [batch, key heads, keys, size], mask [batch, heads, queries, keys] or broadcast."""
    options = options or {}
    operands = {"query": query, "key": key, "value": value}
    for name, t in operands.items():
        if not t.is_cpu:
            return f"the {name} is on {t.device}, not on the CPU"
        if t.dtype is not torch.float32:
            return f"the {name} is {t.dtype}, not float32"
        if t.numel() == 0:
            return f"the {name} {list(t.shape)} is empty"
    if query.shape[2] < LEAST_QUERIES:
        return f"{query.shape[2]} queries are fewer than {LEAST_QUERIES}"
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


def _in_float32(module: nn.Module, *call: Any) -> tuple[Tensor, None]:
    *operands, options = call
    return sdpa_attention_forward(module, *operands, **options)


def _in_bfloat16(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    causal = causal and mask is None
    bias = options.get("position_bias")
    if bias is not None:
        mask, causal = create_position_bias_mask(bias, mask, causal, query, key), False
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ops.attention(query, key, value, mask, scale, causal), None


KERNELS = (
    Kernel("amx", _in_bfloat16, unsupported, isa="amx"),
    Kernel("reference", _in_float32, never),
)


def choose(*call: Any) -> tuple[Kernel, str]:
    """The kernel for a call with the arguments of `unsupported` here, and why."""
    return select(KERNELS, *call)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [batch, heads, tokens, size] -> [batch, tokens, heads, size]."""
    call = query, key, value, attention_mask, dropout, options
    kernel, _ = choose(*call)
    y: tuple[Tensor, None] = kernel.run(module, *call)
    return y


def register() -> None:
    """Make transformers know the implementation and its masks, which are those of "sdpa"."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
