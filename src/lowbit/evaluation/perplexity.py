"""Perplexity of a causal language model on one long text.

    exp( −1/N Σ log p(token | the tokens before it in its window) )

Windows of `context` tokens start every `stride` tokens. The first window predicts all its tokens
but the first; each further window predicts its new tokens, those that no earlier window held. With
stride = context windows do not overlap, and the first token of each has no context: it is not
predicted. With stride < context every token but the first of the text is predicted exactly once,
with at least context − stride tokens before it (Hugging Face's guide to the perplexity of
fixed-length models).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lowbit.errors import InputError, UsageError
from lowbit.evaluation.mode import evaluating, positions

# Windows go through the model together as long as their logits hold no more numbers than this.
LOGITS_AT_ONCE = 1 << 24


def perplexity(
    model: PreTrainedModel,
    ids: Integer[Tensor, " n"],
    context: int | None = None,
    stride: int | None = None,
    progress: bool = True,
) -> float:
    """Perplexity of `model` on the token ids `ids`, averaged over predicted tokens in float64.

    context: tokens in a window; by default all that the model has positions for.
    stride: tokens between the starts of two windows; by default the context.
    progress: show a bar if it takes more than two seconds.

    Raises UsageError for a model that is no causal language model or a context or stride that
    cannot be; InputError for fewer than 2 tokens or ids outside the vocabulary.
    """
    context = _context(model, context)
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise UsageError(f"stride {stride} is outside 1 … {context}, the context")
    vocabulary = model.config.get_text_config().vocab_size
    _check_ids(ids, vocabulary)
    windows = list(_windows(len(ids), context, stride))
    at_once = max(1, LOGITS_AT_ONCE // (context * vocabulary))
    total, count = torch.zeros((), dtype=torch.float64), 0
    with (
        evaluating(model),
        tqdm(
            total=len(windows), desc="perplexity", unit="window", delay=2, disable=not progress
        ) as bar,
    ):
        for batch in _batches(windows, at_once):
            tokens = torch.stack([ids[start:end] for start, end, _ in batch]).to(model.device)
            new = batch[0][2]
            logits = model(input_ids=tokens, use_cache=False).logits[:, -new - 1 : -1].float()
            losses = cross_entropy(
                logits.flatten(0, 1), tokens[:, -new:].flatten(), reduction="none"
            )
            total += losses.double().sum().cpu()
            count += losses.numel()
            bar.update(len(batch))
    return (total / count).exp().item()


Window = tuple[int, int, int]


def _windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """(start, end, predicted) of each window; the last `predicted` tokens of it are predicted."""
    done = 1
    for start in range(0, length, stride):
        end = min(start + context, length)
        # The first token of a window has nothing before it.
        predicted = end - max(done, start + 1)
        if predicted > 0:
            yield start, end, predicted
        done = end
        if end == length:
            return


def _batches(windows: list[Window], at_once: int) -> Iterator[list[Window]]:
    """Consecutive windows of one shape that predict equally many tokens."""
    batch: list[Window] = []
    for window in windows:
        start, end, predicted = window
        alike = batch and (end - start, predicted) == (batch[0][1] - batch[0][0], batch[0][2])
        if batch and (not alike or len(batch) == at_once):
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _context(model: PreTrainedModel, context: int | None) -> int:
    if model.config.is_encoder_decoder or not model.can_generate():
        raise UsageError(f"perplexity needs a causal language model, not {type(model).__name__}")
    most = positions(model)
    context = most if context is None else context
    if context is None:
        raise UsageError(f"{type(model).__name__} declares no longest sequence: give the context")
    if context < 2:
        raise UsageError(f"context {context} is too short: it takes 2 tokens to predict one")
    if most is not None and context > most:
        raise UsageError(f"context {context} is longer than the model's {most} positions")
    return context


def _check_ids(ids: Tensor, vocabulary: int) -> None:
    if ids.ndim != 1:
        raise UsageError(f"ids are one row of tokens [n], not {list(ids.shape)}")
    if len(ids) < 2:
        raise InputError(f"the text has {len(ids)} tokens; it takes at least 2 to predict one")
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if len(wrong):
        raise InputError(
            f"token {wrong[0]} is outside the model's vocabulary of {vocabulary}:"
            " the text was encoded with another tokenizer"
        )
