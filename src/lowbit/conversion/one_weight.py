"""Quantize one weight of a plan, describe it for config.json, and replace the float weight."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from lowbit.conversion.expert_by_expert import Experts
from lowbit.conversion.module_weights import oriented
from lowbit.conversion.plan import Quantize, TiedTo
from lowbit.conversion.swap import swap, swap_tied
from lowbit.formats import ExpertsTensor, PlainTensor, QTensor
from lowbit.formats.error import ErrorSums, WeightError

# Chooses codes: (decision, weight [out, in]) -> quantized tensor.
Solve = Callable[[Quantize, Float[Tensor, "out in"]], QTensor]


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized tensor, its entry in config.json, and its error."""

    stored: QTensor
    entry: dict[str, Any]
    error: WeightError


def quantize_weight(
    decision: Quantize, weight: Tensor | Experts, solve: Solve = Quantize.nearest
) -> QuantizedWeight:
    """Quantize `weight`, in its float module's orientation. Experts are read and quantized one by
    one. Raises the errors of `solve`."""
    if decision.weights.kind == "experts":
        q, error = _quantize_experts(decision, weight, solve)
    else:
        assert isinstance(weight, Tensor)
        matrix = oriented(weight.detach(), decision.weights)
        q = solve(decision, matrix)
        error = WeightError.of(matrix, q)
    return QuantizedWeight(q, stored_entry(decision, q), error)


def _quantize_experts(
    decision: Quantize, weight: Tensor | Experts, solve: Solve
) -> tuple[QTensor, WeightError]:
    one, experts = decision.of_one_expert(), decision.weights.experts
    sums: list[ErrorSums] = []

    def each() -> Iterator[PlainTensor]:
        for i in range(experts):
            matrix = oriented(weight[i].detach(), one.weights)
            q = solve(one, matrix)
            sums.append(ErrorSums.of(matrix, q))
            yield cast(PlainTensor, q)  # experts have the same scheme, and so the same format

    return ExpertsTensor.of(each(), experts), WeightError.of_sums(sums)


def stored_entry(decision: Quantize, q: QTensor) -> dict[str, Any]:
    """The entry in config.json of a module with weight q."""
    return q.layout.to_dict() | _activations(decision)


def tied_entry(decision: TiedTo) -> dict[str, Any]:
    """The entry in config.json of a module that is tied to another."""
    return {"tied_to": decision.source.name} | _activations(decision)


def _activations(decision: Quantize | TiedTo) -> dict[str, Any]:
    return {"activations": decision.activations} if decision.weights.takes_activations else {}


def put_quantized(model: nn.Module, decision: Quantize, q: QTensor, compute: Tensor) -> None:
    """Replace the float module, or the float parameter, by a packed module with weight q. It
    computes in the dtype and on the device of `compute`."""
    swap(model, decision.weight, decision.weights, q, decision.activations, compute)


def put_tied(model: nn.Module, decision: TiedTo) -> None:
    """Tie the module to its source, which must already be quantized in the model."""
    source = decision.source.weight.module
    swap_tied(model, decision.weight.module, decision.weights, source, decision.activations)
