"""The divergence of a model's predictions from those of its float model.

    KL = 1/N Σ Σ_v p(v) · (log p(v) − log q(v)),  p the reference's and q the model's probabilities

in nats, over the predicted tokens of windows.py, and the share of tokens for which both predict the
same token. The divergence shows differences that are below the noise of perplexity.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.errors import UsageError
from lowbit.evaluation.windows import Windows, check_causal
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar

Z = 1.96  # 95 % of a normal distribution are within this many standard deviations


@dataclass(frozen=True)
class Divergence:
    """`kl`: mean Kullback–Leibler divergence per token, in nats; `top1`: share of tokens with the
    same most probable prediction; `perplexity`: of the model; low, high: its 95 % interval, from
    the paired differences of the losses of both on the same tokens."""

    kl: float
    top1: float
    perplexity: float
    low: float
    high: float


def divergence(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    ids: Integer[Tensor, " n"],
    context: int | None = None,
    stride: int | None = None,
    progress: bool = True,
) -> Divergence:
    """Divergence of `model` from `reference` on the token ids `ids`, summed in float64.

    Raises the errors of `perplexity`, and UsageError if vocabularies differ.
    """
    sizes = [m.config.get_text_config().vocab_size for m in (model, reference)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"vocabularies of {sizes[0]} and {sizes[1]} tokens cannot be compared")
    windows = Windows(model, ids, context, stride)
    check_causal(model)
    divergent, loss, apart, squared = torch.zeros(4, dtype=torch.float64)
    alike = 0
    with (
        evaluating(model),
        evaluating(reference),
        progress_bar(len(windows), "divergence", "window", progress) as bar,
    ):
        for batch in windows:
            log_p = batch.logits(reference).cpu().log_softmax(-1)
            log_q = batch.logits(model).cpu().log_softmax(-1)
            alike += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
            # The float32 terms of one token cancel to about 1e-7 of a nat.
            divergent += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum()
            found = log_q.gather(-1, batch.targets[..., None]).double()
            difference = log_p.gather(-1, batch.targets[..., None]).double() - found
            loss -= found.sum()
            apart += difference.sum()
            squared += difference.square().sum()
            bar.update(len(batch.tokens))
    count = windows.predicted
    mean = apart / count
    # The standard error of a mean of `count` independent tokens; undefined for one token.
    error = ((squared / count - mean.square()).clamp(min=0) / max(count - 1, 0)).sqrt()
    low, value, high = ((loss / count + side * error).exp().item() for side in (-Z, 0, Z))
    return Divergence((divergent / count).item(), alike / count, value, low, high)
