"""The output of a model for a batch, and its distance from the output with other weights.

*divergence*: if the model has logits of classes, the KL divergence in nats of its predictions
    from the float model's, summed over tokens;
*squares*: else the squared error of its first output, or, of a model that answers questions, of the
    logits of where answers start and end.

Padding does not count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.func import functional_call

from lowbit.solvers.observe import tokens


@dataclass(frozen=True)
class Distance:
    """A distance as a fraction; over several batches, the sum of `part`, a float64 scalar with
    gradients, divided by the sum of `whole`."""

    part: Callable[[Tensor, Tensor], Tensor]
    whole: Callable[[Tensor], float]


def output(
    model: nn.Module, batch: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
) -> tuple[Float32[Tensor, "tokens values"], Distance]:
    """The model's output, with other `weights` by parameter name, and its kind of distance."""
    out = functional_call(model, dict(weights or {}), kwargs=dict(batch))
    logits = getattr(out, "logits", None)
    first: Tensor
    if hasattr(out, "start_logits"):
        first = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        first = out[0] if logits is None else logits
    is_classes = logits is not None and first.shape[-1] > 1
    # The output of an encoder–decoder has its decoder's tokens.
    decoder = {name: mask for name, mask in batch.items() if name == "decoder_attention_mask"}
    return tokens(first.float(), decoder or batch), DIVERGENCE if is_classes else SQUARES


def _divergence(wanted: Float32[Tensor, "tokens n"], found: Float32[Tensor, "tokens n"]) -> Tensor:
    log_p, log_q = wanted.log_softmax(-1), found.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).double().sum()


def _squares(x: Float32[Tensor, "tokens n"]) -> Tensor:
    return x.double().square().sum()


DIVERGENCE = Distance(_divergence, len)
SQUARES = Distance(lambda wanted, found: _squares(wanted - found), lambda x: float(_squares(x)))
