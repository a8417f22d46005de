"""torch's LayerNorm of a few rows by csrc/torch_layer_norm.h, if that has torch's bits here.

Which bits torch computes depends on its release, its compiler and the processor. So both are
compared for each number of columns, before the first use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from lowbit.kernels import sequence
from lowbit.kernels.native import module
from lowbit.kernels.selection import target_here

# Orders of summation that differ in one rounding differ in one row of a hundred.
PIECES, ROWS, SEED = 8, 256, 0


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """y = (x - mean) / sqrt(variance + epsilon) weight + bias, float32 and contiguous."""

    y: Float32[Tensor, "*rows columns"]
    x: Float32[Tensor, "*rows columns"]
    weight: Float32[Tensor, " columns"]
    bias: Float32[Tensor, " columns"]
    epsilon: float

    def add_to(self, native: Any) -> None:
        columns = len(self.weight)
        native.torch_layer_norm(
            target_here("torch_layer_norm"),
            *(t.data_ptr() for t in (self.x, self.weight, self.bias, self.y)),
            self.x.numel() // columns,
            columns,
            self.epsilon,
        )


def operation(
    y: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> LayerNorm | None:
    """torch.layer_norm of the other arguments into y; None if native code does not serve it."""
    if module is None or weight is None or bias is None or len(normalized_shape) != 1:
        return None
    if not 0 < y.numel() <= sequence.MOST_NUMBERS:
        return None
    if not all(
        t.is_cpu and t.dtype is torch.float32 and t.is_contiguous() for t in (y, x, weight, bias)
    ):
        return None
    return LayerNorm(y, x, weight, bias, eps) if has_torchs_bits(len(weight), eps) else None


@lru_cache(maxsize=64)
def has_torchs_bits(columns: int, epsilon: float) -> bool:
    """Whether native code and torch agree on rows of normally distributed numbers."""
    generator = torch.Generator().manual_seed(SEED)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    with torch.inference_mode():
        weight, bias = numbers(columns), numbers(columns)
        for _ in range(PIECES):
            x = numbers(ROWS, columns) * 10 ** numbers(ROWS, 1) + numbers(ROWS, 1)
            y = torch.empty_like(x)
            sequence.sequence([LayerNorm(y, x, weight, bias, epsilon)])()
            if not torch.equal(y, torch.layer_norm(x, (columns,), weight, bias, epsilon)):
                return False
    return True
