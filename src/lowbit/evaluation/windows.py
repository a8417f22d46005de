"""Windows over one long text, for measurements per token.

Windows of `context` tokens start every `stride` tokens. The first window predicts all its tokens
except the first. Each further window predicts its new tokens. If stride = context, windows do not
overlap, and the first token of each has no context, so it is not predicted. If stride < context,
every token except the first of the text is predicted exactly once, with at least context − stride
tokens before it (Hugging Face's guide to the perplexity of fixed-length models).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.errors import InputError, UsageError
from lowbit.nn.eval_mode import evaluating, positions, unmasked

# The most numbers of the logits of windows in one batch, and of
# activations, which may be wider than a small vocabulary.
LOGITS_AT_ONCE = 1 << 24
WIDTH = 1 << 13

# Of a model that is asked whether it reads later tokens: tokens, and the least part of its logits
# by which these change.
TRIED = 4
SEEN = 1e-3

Window = tuple[int, int, int]


@dataclass(frozen=True)
class Batch:
    """Windows of one shape: token ids [windows, length], of which the last `predicted` count."""

    tokens: Integer[Tensor, "windows length"]
    predicted: int

    @property
    def targets(self) -> Integer[Tensor, "windows predicted"]:
        return self.tokens[:, -self.predicted :]

    def logits(self, model: PreTrainedModel) -> Tensor:
        """What the model predicts for the targets: float32 [windows, predicted, vocabulary]."""
        with unmasked(model):
            out = model(input_ids=self.tokens.to(model.device), use_cache=False)
        logits: Tensor = out.logits[:, -self.predicted - 1 : -1].float()
        return logits


class Windows:
    """All windows of a text for a model.

    context: tokens in a window; by default all that the model has positions for.
    stride: tokens between the starts of two windows; by default the context.

    Raises UsageError for a model that is no causal language model or a context or stride that
    cannot be; InputError for fewer than 2 tokens or ids outside the vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Integer[Tensor, " n"],
        context: int | None = None,
        stride: int | None = None,
    ) -> None:
        self.ids = ids
        self.context, self.stride = context_and_stride(model, context, stride)
        vocabulary = model.config.get_text_config().vocab_size
        _check_ids(ids, vocabulary)
        self.windows = list(_windows(len(ids), self.context, self.stride))
        self.at_once = max(1, LOGITS_AT_ONCE // (self.context * max(vocabulary, WIDTH)))

    @property
    def predicted(self) -> int:
        """The number of predicted tokens."""
        return sum(predicted for _, _, predicted in self.windows)

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Batch]:
        for batch in _batches(self.windows, self.at_once):
            tokens = torch.stack([self.ids[start:end] for start, end, _ in batch])
            yield Batch(tokens, batch[0][2])


def longest_context(model: PreTrainedModel, context: int | None) -> int:
    """`context`, or by default all positions. Raises UsageError if the model does not support
    it."""
    if model.config.is_encoder_decoder or not model.can_generate():
        raise UsageError(f"perplexity needs a causal language model, not {type(model).__name__}")
    most = positions(model)
    context = most if context is None else context
    if context is None:
        raise UsageError(
            f"{type(model).__name__} has no maximum length in its config: give the context"
        )
    if context < 2:
        raise UsageError(f"context {context} is too short: at least 2 tokens are needed")
    if most is not None and context > most:
        raise UsageError(f"context {context} is longer than the model's {most} positions")
    return context


def check_causal(model: PreTrainedModel) -> None:
    """Raises UsageError if what a model predicts of a token depends on this token."""
    tokens = min(TRIED, positions(model) or TRIED)
    first = torch.arange(tokens) % model.config.get_text_config().vocab_size
    other = first.clone()
    other[-1] = first[0]
    with evaluating(model):
        a, b = Batch(torch.stack([first, other]), tokens - 1).logits(model)
    if (a - b).abs().max() > SEEN * a.abs().max():
        raise UsageError(
            f"{type(model).__name__} also reads the tokens that it is to predict: a causal language"
            " model is needed"
        )


def context_and_stride(
    model: PreTrainedModel, context: int | None, stride: int | None
) -> tuple[int, int]:
    """The context and the stride. Raises UsageError if one is out of range."""
    context = longest_context(model, context)
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise UsageError(f"stride {stride} is outside 1 … {context}, the context")
    return context, stride


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


def _check_ids(ids: Tensor, vocabulary: int) -> None:
    if ids.ndim != 1:
        raise UsageError(f"ids are one row of tokens [n], not {list(ids.shape)}")
    if len(ids) < 2:
        raise InputError(f"the text has {len(ids)} tokens; at least 2 are needed")
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if len(wrong):
        raise InputError(
            f"token {wrong[0]} is outside the model's vocabulary of {vocabulary}:"
            " the text was encoded with another tokenizer"
        )
