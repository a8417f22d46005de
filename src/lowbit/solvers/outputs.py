"""What a model says about a batch, and how far other weights move that.

*divergence*: where the model has logits of classes, the KL divergence in nats of its predictions
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
    """Of batches it is the sum of `part`, a float64 scalar through which gradients flow, over the
    sum of `whole`."""

    part: Callable[[Tensor, Tensor], Tensor]
    whole: Callable[[Tensor], float]


def output(
    model: nn.Module, batch: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
) -> tuple[Float32[Tensor, "tokens values"], Distance]:
    """What it says, with other `weights` by the names of parameters, and how to compare that."""
    out = functional_call(model, dict(weights or {}), kwargs=dict(batch))
    logits = getattr(out, "logits", None)
    first: Tensor
    if hasattr(out, "start_logits"):
        first = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        first = out[0] if logits is None else logits
    is_classes = logits is not None and first.shape[-1] > 1
    # What an encoder–decoder says are its decoder's tokens.
    decoder = {name: mask for name, mask in batch.items() if name == "decoder_attention_mask"}
    return tokens(first.float(), decoder or batch), DIVERGENCE if is_classes else SQUARES


def _divergence(wanted: Float32[Tensor, "tokens n"], found: Float32[Tensor, "tokens n"]) -> Tensor:
    log_p, log_q = wanted.log_softmax(-1), found.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).double().sum()


def _squares(x: Float32[Tensor, "tokens n"]) -> Tensor:
    return x.double().square().sum()


DIVERGENCE = Distance(_divergence, len)
SQUARES = Distance(lambda wanted, found: _squares(wanted - found), lambda x: float(_squares(x)))
