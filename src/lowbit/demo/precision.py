"""bfloat16 where the processor multiplies it natively; elsewhere it is emulated, and slow."""

from contextlib import AbstractContextManager, nullcontext

import torch


def half_where_it_is_faster() -> AbstractContextManager[object]:
    """Autocast of matrix products to bfloat16 on AVX-512 BF16 and AMX, nothing on other CPUs."""
    if torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()
