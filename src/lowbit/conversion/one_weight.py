"""One weight of a plan: quantized, described for config.json, and put where the float one was."""

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

# How codes are chosen: (decision, weight [out, in]) -> its stored form.
Solve = Callable[[Quantize, Float[Tensor, "out in"]], QTensor]


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized tensor, what config.json keeps of it, and how far it is from the float weight."""

    stored: QTensor
    entry: dict[str, Any]
    error: WeightError


def quantize_weight(
    decision: Quantize, weight: Tensor | Experts, solve: Solve = Quantize.nearest
) -> QuantizedWeight:
    """Quantize `weight`, which is as its float module stores it. Experts are quantized one after
    the other, each when it is read. Raises as `solve` does."""
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
            yield cast(PlainTensor, q)  # one scheme, one form

    return ExpertsTensor.of(each(), experts), WeightError.of_sums(sums)


def stored_entry(decision: Quantize, q: QTensor) -> dict[str, Any]:
    """What config.json keeps of a module that holds q."""
    return q.layout.to_dict() | _activations(decision)


def tied_entry(decision: TiedTo) -> dict[str, Any]:
    """What config.json keeps of a module that uses the stored weight of another."""
    return {"tied_to": decision.source.name} | _activations(decision)


def _activations(decision: Quantize | TiedTo) -> dict[str, Any]:
    return {"activations": decision.activations} if decision.weights.takes_activations else {}


def put_quantized(model: nn.Module, decision: Quantize, q: QTensor, compute: Tensor) -> None:
    """Put a packed module that holds q in place of the float one, or of the float parameter; it
    computes in the dtype and on the device of `compute`."""
    swap(model, decision.weight, decision.weights, q, decision.activations, compute)


def put_tied(model: nn.Module, decision: TiedTo) -> None:
    """Let the module use its source's stored weight, which is in the model already."""
    source = decision.source.weight.module
    swap_tied(model, decision.weight.module, decision.weights, source, decision.activations)
