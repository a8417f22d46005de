"""Which of transformers' attentions a model trains with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


@contextmanager
def trainable_attention(model: PreTrainedModel, bf16: bool) -> Iterator[None]:
    """Attention as separate products in bfloat16 on CPUs; the model's own is restored afterwards.

    The gradient of torch's fused one takes 7 times as long there as in float32, and makes
    bfloat16 slower than float32 altogether.
    """
    own = model.config._attn_implementation
    if bf16 and own == "sdpa" and not torch.cuda.is_available():
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)
