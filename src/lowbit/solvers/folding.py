"""Fold a scale per input of a weight into the module that computes these inputs.

    y = W x = (W · diag(f)) (x / f)

The producer divides its outputs by f: a norm divides its weight and bias, a linear layer the rows
of its weight and its bias. Factors of 2 and 1/2 test whether a module can do so (equivalence.py).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from lowbit.conversion.module_weights import Weights, weights_of
from lowbit.solvers.block_runner import Playback
from lowbit.solvers.blocks import Stage
from lowbit.solvers.equivalence import Equivalence, parameter_names
from lowbit.solvers.observe import Observed

TRIALS = 4


def fold(
    playback: Playback,
    stage: Stage,
    layers: Mapping[str, nn.Module],
    seen: Observed,
    factors: Callable[[list[str]], Float32[Tensor, " in"]],
) -> tuple[set[str], list[str]]:
    """Fold the factors of `factors` into all layers of the stage, one set per shared input, and
    update `seen`.

    Returns the names of the changed parameters, and the layers without a module that can absorb the
    factors.
    """
    if stage.stack is None:
        return set(), list(seen.reads)
    changed: set[str] = set()
    left: list[str] = []
    trial = Equivalence(playback, stage)
    for names in seen.shared():
        consumers = [layers[name] for name in names]
        producer = _producer(trial, consumers)
        if producer is None:
            left += names
            continue
        found = factors(names)
        _scale(producer, consumers, found)
        seen.inputs[names[0]] = seen.inputs[names[0]].scaled(1 / found)
        changed |= parameter_names(playback.model, [producer, *consumers])
    return changed, left


def _producer(trial: Equivalence, consumers: Sequence[nn.Module]) -> nn.Module | None:
    """The nearest producer that can absorb factors for the `consumers`, or None."""
    if any(module not in trial.order for module in consumers):
        return None
    width = _width(consumers[0])
    signs = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(width))
    factors = torch.where(signs.bool(), 2.0, 0.5).to(_weight(consumers[0]).device)
    before = trial.order[: min(trial.order.index(module) for module in consumers)]
    candidates = [m for m in reversed(before) if _makes(m) == width]
    for producer in candidates[:TRIALS]:
        if trial.holds([producer, *consumers], partial(_scale, producer, consumers, factors)):
            return producer
    return None


def _makes(module: nn.Module) -> int | None:
    """The number of outputs per token that each have their own parameters in the module."""
    kind = weights_of(module)
    if isinstance(kind, Weights):
        return kind.shape[0] if kind.kind == "linear" else None
    own = {name: p for name, p in module._parameters.items() if p is not None}
    vectors = own.keys() in ({"weight"}, {"weight", "bias"}) and own["weight"].ndim == 1
    return len(own["weight"]) if vectors else None


def _width(consumer: nn.Module) -> int:
    kind = weights_of(consumer)
    assert isinstance(kind, Weights)
    return kind.shape[1]


def _scale(producer: nn.Module, consumers: Sequence[nn.Module], factors: Tensor) -> None:
    """Divide the outputs of the producer, and multiply the columns of its consumers' weights."""
    # Assign new tensors; callers keep the old ones to undo the change.
    for module, scale in (
        (producer, 1 / factors),
        *((consumer, factors) for consumer in consumers),
    ):
        weight = _weight(module)
        rows = weight.ndim == 2 and _by_rows(module) == (module is producer)
        weight.data = (weight * (scale[:, None] if rows else scale)).to(weight.dtype)
    bias = producer._parameters.get("bias")
    if bias is not None:
        bias.data = (bias / factors).to(bias.dtype)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def _by_rows(module: nn.Module) -> bool:
    """Whether the weight is a matrix stored as [out, in]."""
    kind = weights_of(module)
    return isinstance(kind, Weights) and not kind.transposed
