"""Which of transformers' attentions a model trains with."""

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from lowbit.kernels.attention.hf_attention import instead_of_sdpa


def trainable_attention(model: PreTrainedModel, bf16: bool) -> AbstractContextManager[None]:
    """Attention as separate products in bfloat16 on CPUs; the model's own is restored afterwards.

    The gradient of torch's fused one takes 7 times as long there as in float32, and makes
    bfloat16 slower than float32 altogether.
    """
    if bf16 and not torch.cuda.is_available():
        return instead_of_sdpa(model, "eager")
    return nullcontext()
