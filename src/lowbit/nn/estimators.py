"""Gradient estimators: rounding has no useful gradient.

    ste      ŵ = Q(w)        ∂ŵ/∂w = 1                      Bengio et al. 2013
    clipped  ŵ = Q(w)        ∂ŵ/∂w = 1 if w is in the range of the codes, 0 if it is clamped
                                                            Jacob et al. 2018
    lsq      ŵ = s · (q − z), q = clamp(round(w / s) + z, lowest, highest), with s learned:
             ∂ŵ/∂w = 1 inside, else 0
             ∂ŵ/∂s = (q − z) − w / s inside, q − z if clamped, times 1 / √(n · highest)
                                                            Esser et al. 2020, eq. 3 and section 2.2

n is the number of weights that share a scale (of a whole group).
"""

import math
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, rounded: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], 0), None, None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        scale: Tensor,
        rounded: Tensor,
        stored: Tensor,
        low: Tensor,
        high: Tensor,
        gain: float,
    ) -> Tensor:
        ctx.save_for_backward(w, rounded, stored, (w >= low) & (w <= high))
        ctx.gain, ctx.shape = gain, scale.shape
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, rounded, stored, inside = ctx.saved_tensors
        (grad,) = grads
        by_scale = torch.where(inside, rounded - w, rounded) / stored
        total = (grad * by_scale).sum_to_size(ctx.shape) * ctx.gain
        return torch.where(inside, grad, 0), total, None, None, None, None, None


def straight_through(w: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`; the gradient passes to w unchanged."""
    result: Tensor = _StraightThrough.apply(w, rounded)
    return result


def clipped(w: Tensor, rounded: Tensor, inside: Tensor) -> Tensor:
    """`rounded`; the gradient passes to w if w is `inside` the range of the codes, else it is 0."""
    result: Tensor = _Clipped.apply(w, rounded, inside)
    return result


def learned_step(
    w: Tensor,
    scale: Tensor,
    rounded: Tensor,
    stored: Tensor,
    low: Tensor,
    high: Tensor,
    highest_code: int,
) -> Tensor:
    """`rounded` = stored · (q − z), with gradients to w and to `scale`, whose last dimension is 1.

    stored: the scale that is saved (for example in float16); the codes were computed with it. low,
    high: the range of the codes.
    """
    sharing = w.numel() // max(1, scale.numel())
    gain = 1 / math.sqrt(max(1, sharing) * highest_code)
    result: Tensor = _LearnedStep.apply(w, scale, rounded, stored, low, high, gain)
    return result
