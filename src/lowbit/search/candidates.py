"""What may become of each module: the weights to decide on, and the stored forms tried on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from lowbit.calibration import Calibration
from lowbit.conversion.module_weights import matrix
from lowbit.conversion.plan import Decision, cover
from lowbit.conversion.recipe import KEEP, Recipe, Rule
from lowbit.errors import UsageError
from lowbit.formats import QTensor
from lowbit.progress import tracked
from lowbit.schemes import Scheme
from lowbit.solvers import Solver
from lowbit.solvers.decide import solve_weight
from lowbit.solvers.sequential import walked

NEAREST = Solver()


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
    model: PreTrainedModel,
    schemes: Sequence[Scheme],
    keep: Sequence[str],
    progress: bool = True,
    solver: Solver = NEAREST,
    calibration: Calibration = (),
) -> list[list[Candidate]]:
    """For each weight, once for tied ones: every scheme that can hold it, and float.

    keep: patterns of a recipe; what they match stays float and is not listed. solver: that which
    solves all weights by one scheme after the other; nearest rounding stands in for one that moves
    scales or biases to other parameters, which all candidates share.

    Raises UsageError where there is no scheme, or nothing that one of them could hold.
    """
    if not schemes:
        raise UsageError("there is no scheme to choose from")
    kept = tuple(Rule(pattern, KEEP) for pattern in keep)
    found: dict[str, list[Candidate]] = {}
    for scheme in schemes:
        rules = (*kept, Rule("@linear", scheme), Rule("@embedding", scheme))
        recipe = Recipe(rules, name=f"search ({scheme.name} {scheme.bits})", strict=False)
        owners = [d for d in cover(model, recipe).quantized if d.tied_to is None]
        stored = _stored(model, recipe, owners, solver, calibration, progress)
        for d in owners:
            q, first = stored[d.name], Candidate(d, None, None, _weight(model, d).nbytes)
            size = sum(tensor.nbytes for tensor in q.tensors().values())
            found.setdefault(d.name, [first]).append(Candidate(d, scheme, q, size))
    return list(found.values())


def _stored(
    model: PreTrainedModel,
    recipe: Recipe,
    owners: Sequence[Decision],
    solver: Solver,
    calibration: Calibration,
    progress: bool,
) -> Mapping[str, QTensor]:
    """The weights of `owners` by `recipe`, their scales not tuned, which is for all of a model. The
    model is as before at the end."""
    solver = NEAREST if solver.moves else replace(solver, tune=0)
    if solver.data:
        with walked(model, recipe, solver, calibration, progress=progress) as solved:
            return solved.stored
    label = f"quantizing for {recipe.name}"
    bar = tracked(owners, label, "weight", progress)
    return {d.name: solve_weight(solver, d, _weight(model, d), None) for d in bar}


def _weight(model: PreTrainedModel, decision: Decision) -> Tensor:
    assert decision.weights is not None
    return matrix(model.get_submodule(decision.name), decision.weights)


def recipe_of(chosen: Sequence[Candidate]) -> Recipe:
    """The recipe that says so, module by module."""
    return Recipe(tuple(Rule(c.module, c.scheme) for c in chosen), "searched")
