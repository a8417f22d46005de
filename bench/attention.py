"""Attention by itself: ours beside PyTorch's in float32 and in bfloat16.

    python bench/attention.py [--threads 2] [--rounds 100] [--write]

12 heads of 64, float32 in and out, laid out as transformers does: [batch, tokens, heads · size]
before and after; ours computes in bfloat16 where there are tiles. *Padding* forbids a fifth of the
keys of each sequence by a boolean mask.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from machine import described, finish, speed_page
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from turns import parser, ready, take_turns, times_faster

from lowbit.kernels import native, ops

RESULT = speed_page("attention")
HEADS, SIZE = 12, 64
SHAPES = ((1, 128), (8, 128), (1, 512))  # batch, tokens
KINDS = ("", "padding", "causal")
TARGETS = native.targets("attention_bfloat16") + native.targets("attention_float32")
TARGET = next(target.name for target in TARGETS if not native.lacks(target.feature))

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


def in_torch(dtype: torch.dtype) -> Attention:
    """What transformers does, for operands of `dtype`."""

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        operands = q.to(dtype), k.to(dtype), v.to(dtype)
        y = scaled_dot_product_attention(*operands, attn_mask=mask, is_causal=causal)
        return y.transpose(1, 2).contiguous().float()

    return attention


def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    return ops.attention(q, k, v, mask, SIZE**-0.5, causal, TARGET)


CONTENDERS: dict[str, Attention] = {
    "torch float32": in_torch(torch.float32),
    "torch bfloat16": in_torch(torch.bfloat16),
    "lowbit": ours,
}


def measure(batch: int, tokens: int, kind: str, rounds: int) -> str:
    operands = [
        torch.randn(batch, tokens, HEADS * SIZE).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
        for _ in range(3)
    ]
    mask = None
    if kind == "padding":
        seen = torch.arange(tokens) < tokens * 4 // 5
        mask = seen.expand(batch, 1, tokens, tokens)
    call = *operands, mask, kind == "causal"
    exact = in_torch(torch.float64)(*call)
    runs = {name: partial(run, *call) for name, run in CONTENDERS.items()}
    taken = take_turns(runs, rounds, unmeasured=3)
    error = float((ours(*call) - exact).norm() / exact.norm())
    cells = [f"{batch} × {tokens}{', ' if kind else ''}{kind}"]
    cells += [f"{statistics.median(times) * 1e3:.2f}" for times in taken.values()]
    for other in ("torch float32", "torch bfloat16"):
        cells.append(f"{times_faster(taken[other], taken['lowbit']):.2f}")
    return f"| {' | '.join(cells)} | {error:.1e} |"


def main() -> None:
    options = parser(__doc__, RESULT, rounds=100).parse_args()
    ready(options.threads)
    lines = [
        "# Attention by itself",
        "",
        f"`python bench/attention.py`, {time.strftime('%Y-%m-%d')}. {described()} {HEADS} heads of"
        f" {SIZE}, float32 in and out, on {TARGET}; medians of {options.rounds} rounds, in"
        " milliseconds.",
        "",
        f"| batch × tokens | {' | '.join(CONTENDERS)} | × float32 | × bfloat16 | relative error |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        lines += [measure(batch, tokens, kind, options.rounds) for batch, tokens in SHAPES]
    finish(lines, RESULT, options.write)


if __name__ == "__main__":
    main()
