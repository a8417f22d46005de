"""Attention in bfloat16, registered with transformers as "lowbit".

    model.set_attn_implementation("lowbit")

Scores, softmax and values of float32 models are computed from operands in bfloat16 where the
processor has tiles for them; sums stay float32. The result of one attention is off by 0.4 %
(relative Frobenius error on normal operands). Masks, caches, cross-attention and grouped heads are
handled by transformers' own code around it. What it does not serve goes to that code in float32;
`choose` says which, and why.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lowbit.kernels.selection import Kernel, never, select

NAME = "lowbit"
# Fewer queries are done sooner in float32: keys and values are converted at every call.
LEAST_QUERIES = 64


def unsupported(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> str | None:
    """Why bfloat16 does not serve a query [batch, heads, queries, size], or None."""
    if not query.is_cpu:
        return f"the query is on {query.device}, not on the CPU"
    if query.dtype is not torch.float32:
        return f"the query is {query.dtype} already"
    if query.shape[-2] < LEAST_QUERIES:
        return f"{query.shape[-2]} queries are fewer than {LEAST_QUERIES}"
    if dropout:
        return f"dropout {dropout} belongs to training"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        return "gradients are asked for"
    return None


def _in_float32(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return sdpa_attention_forward(module, *args, **kwargs)


def _in_bfloat16(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    operands = query.bfloat16(), key.bfloat16(), value.bfloat16()
    y, weights = sdpa_attention_forward(module, *operands, *args, **kwargs)
    return y.float(), weights


KERNELS = (
    Kernel("amx", _in_bfloat16, unsupported, isa="amx"),
    Kernel("reference", _in_float32, never),
)


def choose(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> tuple[Kernel, str]:
    """The kernel for such a call here, and why."""
    return select(KERNELS, query, key, value, dropout)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: [batch, heads, tokens, size] -> [batch, tokens, heads, size]."""
    kernel, _ = choose(query, key, value, dropout)
    y: tuple[Tensor, None] = kernel.run(
        module, query, key, value, attention_mask, dropout=dropout, **kwargs
    )
    return y


def register() -> None:
    """Make transformers know the implementation and its masks, which are those of "sdpa"."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
