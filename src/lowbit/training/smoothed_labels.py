"""Cross-entropy with smoothed labels, in few passes over the logits.

For logits z, the label y of V classes and the strength e:

    loss     = log Σ exp z − (1 − e) z_y − e mean(z)
    gradient = softmax(z) − (1 − e) [i = y] − e / V

A translator's logits are the largest matrix of a step. Automatic differentiation makes about ten
more of that size, which takes a third of the step on a CPU; here it is one.

Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.trainer_pt_utils import LabelSmoother

from lowbit.evaluation.teacher_forcing import IGNORED


class SmoothedLabels(LabelSmoother):
    """transformers' `LabelSmoother`, computed in this way."""

    def __call__(
        self,
        model_output: Any,
        labels: Int64[Tensor, "*batch"],
        shift_labels: bool = False,
        num_items_in_batch: Int64[Tensor, ""] | int | None = None,
    ) -> Float32[Tensor, ""]:
        """The mean over tokens; shift_labels: each label is that of the logits before it."""
        logits = model_output["logits"]
        if shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        labels = labels.flatten()
        counted = labels != IGNORED
        loss: Tensor = _Loss.apply(logits.flatten(0, -2), labels, counted, self.epsilon)
        return loss.sum() / (counted.sum() if num_items_in_batch is None else num_items_in_batch)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "tokens classes"],
        labels: Int64[Tensor, " tokens"],
        counted: Bool[Tensor, " tokens"],
        strength: float,
    ) -> Float32[Tensor, " tokens"]:
        """0 for what is not counted."""
        ctx.dtype, ctx.strength = logits.dtype, strength
        logits, at = logits.float(), labels.clamp(min=0)[:, None]
        p = logits.softmax(-1)
        ctx.save_for_backward(p, at, counted)
        log_sum = logits.amax(-1) - p.amax(-1).log()
        own = logits.gather(-1, at)[:, 0]
        loss = log_sum - torch.lerp(own, logits.mean(-1), strength)
        return loss.where(counted, 0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, scale: Float32[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, "tokens classes"], None, None, None]:
        gradient, at, counted = ctx.saved_tensors  # the probabilities, which nothing else reads
        gradient -= ctx.strength / gradient.shape[-1]
        gradient.scatter_add_(-1, at, gradient.new_full(at.shape, ctx.strength - 1))
        gradient *= scale.where(counted, 0)[:, None]
        return gradient.to(ctx.dtype), None, None, None
