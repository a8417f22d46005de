"""Perplexity of a causal language model on one long text.

    exp( −1/N Σ log p(token | the tokens before it in its window) )

over the windows of windows.py.
"""

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lowbit.evaluation.windows import Windows, check_causal
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar


def perplexity(
    model: PreTrainedModel,
    ids: Integer[Tensor, " n"],
    context: int | None = None,
    stride: int | None = None,
    progress: bool = True,
) -> float:
    """Perplexity of `model` on the token ids `ids`, averaged over predicted tokens in float64.

    context, stride: see windows.py; by default all the model's positions, without overlap.
    progress: show a progress bar if it takes more than two seconds.

    Raises UsageError if the model is not a causal language model, or context or stride is out of
    range; InputError if there are fewer than 2 tokens or ids are outside the vocabulary.
    """
    windows = Windows(model, ids, context, stride)
    check_causal(model)
    total = torch.zeros((), dtype=torch.float64)
    with evaluating(model), progress_bar(len(windows), "perplexity", "window", progress) as bar:
        for batch in windows:
            logits = batch.logits(model)
            targets = batch.targets.to(logits.device)
            losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            total += losses.double().sum().cpu()
            bar.update(len(batch.tokens))
    return (total / windows.predicted).exp().item()
