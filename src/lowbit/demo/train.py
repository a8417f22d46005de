"""A training loop of its own: next-token prediction with AdamW, warm-up and cosine.

Each step takes `batch` pieces of context + 1 tokens, in one random order over the whole text.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2LMHeadModel

from lowbit.demo.model import DemoSettings
from lowbit.progress import progress_bar
from lowbit.training import bfloat16

LOWEST_RATE = 0.05  # the share of the learning rate that cosine ends with
LONGEST_WARM_UP = 40  # steps
WEIGHT_DECAY = 0.1


@torch.enable_grad()
def train(
    model: GPT2LMHeadModel, ids: Integer[Tensor, " n"], settings: DemoSettings, progress: bool
) -> None:
    """Train `model` in place on the token ids for `settings.steps` steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
    )
    schedule = LambdaLR(optimizer, lambda step: rate(step, settings.steps))
    # At this length plain attention is faster than the fused kernel of the CPU.
    model.set_attn_implementation("eager")
    model.train()
    # Subnormal numbers, which training makes many of, are several times slower than others.
    torch.set_flush_denormal(True)
    try:
        with progress_bar(settings.steps, "training", "step", progress) as bar:
            for batch in batches(ids, settings):
                with half_where_it_is_faster():
                    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
                loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    finally:
        torch.set_flush_denormal(False)
    model.eval()


def half_where_it_is_faster() -> AbstractContextManager[object]:
    """Autocast of products to bfloat16 where the processor has it; where not, it is emulated."""
    if bfloat16.has_products():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step: linear from 0 to 1, then cosine to LOWEST_RATE."""
    warm_up = min(LONGEST_WARM_UP, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * done)) / 2


def batches(ids: Integer[Tensor, " n"], settings: DemoSettings) -> Iterator[Integer[Tensor, "b t"]]:
    """`steps` batches [batch, context + 1]; the order starts again when the text is used up."""
    starts = torch.arange(0, len(ids) - settings.context, settings.context)
    generator = torch.Generator().manual_seed(settings.seed)
    order = starts[torch.randperm(len(starts), generator=generator)]
    window = torch.arange(settings.context + 1)
    for step in range(settings.steps):
        chosen = torch.arange(step * settings.batch, (step + 1) * settings.batch) % len(order)
        yield ids[order[chosen][:, None] + window]
