"""What may become of each module: the weights to decide on, and quantized tensors of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from lowbit.conversion.plan import Plan, Quantize, make_plan
from lowbit.conversion.recipe import KEEP, Recipe, Rule
from lowbit.errors import UsageError
from lowbit.formats import QTensor
from lowbit.progress import tracked
from lowbit.schemes import Scheme
from lowbit.solvers import Solver
from lowbit.solvers.sequential import solved_sequentially

NEAREST = Solver()


@dataclass(frozen=True)
class Candidate:
    """One way to store the weight of one module. `scheme` and `stored` are None for float."""

    decision: Quantize
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
    batches: Sequence[Mapping[str, Tensor]] = (),
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
        plan = make_plan(model, recipe)
        stored = _stored(model, plan, solver, batches, progress)
        for d in plan.owners:
            q, first = stored[d.name], Candidate(d, None, None, d.weight.of(model).nbytes)
            size = sum(tensor.nbytes for tensor in q.tensors().values())
            found.setdefault(d.name, [first]).append(Candidate(d, scheme, q, size))
    return list(found.values())


def _stored(
    model: PreTrainedModel,
    plan: Plan,
    solver: Solver,
    batches: Sequence[Mapping[str, Tensor]],
    progress: bool,
) -> Mapping[str, QTensor]:
    """The weights by `plan`, their scales not tuned, which is for all of a model. The model is as
    before at the end."""
    solver = NEAREST if solver.moves else replace(solver, tune=0)
    if solver.data:
        with solved_sequentially(model, plan, solver, batches, progress=progress) as solved:
            return solved.stored
    label = f"quantizing for {plan.recipe.name}"
    bar = tracked(plan.owners, label, "weight", progress)
    return {d.name: solver.solve(d, d.matrix(model)) for d in bar}


def recipe_of(chosen: Sequence[Candidate]) -> Recipe:
    """The recipe that says so, module by module."""
    return Recipe(tuple(Rule(c.module, c.scheme) for c in chosen), "searched")
