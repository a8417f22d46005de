"""What may become of each module: the weights to decide on, and the stored forms tried on them."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from lowbit.convert import matrix
from lowbit.coverage import Decision, cover
from lowbit.errors import UsageError
from lowbit.formats import QTensor
from lowbit.progress import tracked
from lowbit.recipe import KEEP, Recipe, Rule
from lowbit.schemes import Scheme
from lowbit.solvers import Solver
from lowbit.solvers.decide import solve_weight


@dataclass(frozen=True)
class Candidate:
    """One way to store the weight of one module. `scheme` and `stored` are None for float."""

    decision: Decision
    scheme: Scheme | None
    stored: QTensor | None
    stored_bytes: int

    @property
    def module(self) -> str:
        return self.decision.name


def candidates_of(
    model: PreTrainedModel, schemes: Sequence[Scheme], keep: Sequence[str], progress: bool = True
) -> list[list[Candidate]]:
    """For each weight, once for tied ones: every scheme that can hold it, by nearest rounding, and
    float.

    keep: patterns of a recipe; what they match stays float and is not listed.

    Raises UsageError where there is no scheme, or nothing that one of them could hold.
    """
    if not schemes:
        raise UsageError("there is no scheme to choose from")
    kept = tuple(Rule(pattern, KEEP) for pattern in keep)
    rules = [(*kept, Rule("@linear", s), Rule("@embedding", s)) for s in schemes]
    found: dict[str, list[Candidate]] = {}
    for scheme, own in zip(schemes, rules, strict=True):
        decisions = cover(model, Recipe(own, name="search", strict=False)).quantized
        owners = [d for d in decisions if d.tied_to is None]
        label = f"quantizing ({scheme.name} {scheme.bits})"
        for d in tracked(owners, label, "weight", progress):
            assert d.weights is not None
            weight = matrix(model.get_submodule(d.name), d.weights)
            q = solve_weight(Solver("nearest"), d, weight, None)
            size = sum(tensor.nbytes for tensor in q.tensors().values())
            first = Candidate(d, None, None, weight.nbytes)
            found.setdefault(d.name, [first]).append(Candidate(d, scheme, q, size))
    return list(found.values())


def recipe_of(chosen: Sequence[Candidate]) -> Recipe:
    """The recipe that says so, module by module."""
    return Recipe(tuple(Rule(c.module, c.scheme) for c in chosen), "searched")
