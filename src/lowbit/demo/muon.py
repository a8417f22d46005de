"""Muon: momentum, orthogonalized, for the matrices of a transformer's blocks (Jordan et al. 2024).

    M ← β M + (1 − β) G,   W ← (1 − ηλ) W − 0.2 η √max(out, in) · U Vᵀ,   U Σ Vᵀ = (1 − β) G + β M

U Vᵀ comes from five Newton–Schulz steps X ← aX + (bA + cA²) X, A = X Xᵀ; the factor makes a step
as long as one of AdamW ("Muon is scalable for LLM training", Liu et al. 2025). It is here because
450 steps of the demo ended at a held-out perplexity of 158 with it and of 246 with AdamW alone.
torch's own Muon always multiplies in bfloat16, which takes twenty times as long as float32 on a
processor that has to emulate it.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowbit.demo.precision import half_where_it_is_faster

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices only."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonal(weight.grad.lerp(momentum, MOMENTUM))
                length = 0.2 * math.sqrt(max(weight.shape))
                weight.mul_(1 - rate * decay).add_(update, alpha=-rate * length)


def orthogonal(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """About U Vᵀ of the matrix U Σ Vᵀ: all singular values near 1."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.t()).t()
    a, b, c = NEWTON_SCHULZ
    x = matrix / matrix.norm().clamp(min=1e-7)
    with half_where_it_is_faster():
        for _ in range(ITERATIONS):
            square = x @ x.t()
            x = a * x + (b * square + c * square @ square) @ x
    return x.float()
