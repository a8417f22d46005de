"""Bits for each module under a budget: sensitivities, a knapsack, and an evaluation that decides.

What one choice costs is measured with everything else in float; what all choices together cost is
not their sum, so each recipe is made and evaluated before it is reported. For a budget of size:
the best choices by each measure, and the best single scheme that fits; the evaluation takes the
best. For a budget of quality: bisection over sizes for the smallest that keeps it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from lowbit.calibration import Calibration, batches_of
from lowbit.conversion.footprint import Footprint, footprint
from lowbit.errors import InputError, UsageError, check_choice
from lowbit.evaluation.study import Metric
from lowbit.evaluation.task import Subject, Task
from lowbit.progress import tracked
from lowbit.quantization.in_memory import quantize
from lowbit.schemes import Scheme
from lowbit.search.budget import Budget
from lowbit.search.candidates import Candidate, candidates_of, recipe_of
from lowbit.search.costs import MEASURES, Costs
from lowbit.search.knapsack import choose
from lowbit.search.outcome import Choice, Found, Trial
from lowbit.solvers import Solver, load_solver

# Bisections of the size; each makes and evaluates a model.
STEPS = 6
# Attempts to fit a size where a weight takes more than its candidate does.
FITS = 3


def search(
    subject: Subject,
    budget: Budget,
    task: Task,
    schemes: Sequence[Scheme],
    calibration: Calibration,
    keep: Sequence[str] = (),
    solver: str | Solver = "nearest",
    measures: Sequence[str] = tuple(MEASURES),
    progress: bool = True,
) -> Found:
    """The recipe of `schemes` and float that meets the budget best, by an evaluation on `task`.

    calibration: token ids [samples, length] or model inputs, for the sensitivities and the solver.
    keep: patterns of modules that stay float. measures: of sensitivity, by name; for a budget of
    quality the first counts. The model is as before at the end.

    Raises UsageError for options that cannot be; InputError for a budget that no recipe meets, with
    the smallest that one would.
    """
    task.check(subject)
    if not measures:
        raise UsageError(f"name at least one sensitivity: {', '.join(MEASURES)}")
    for name in measures:
        check_choice("sensitivity", name, MEASURES)
    batches = batches_of(calibration, subject.model)
    limit = budget.bytes_of(footprint(subject.model).parameters)
    solver = load_solver(solver)
    space = _Space.of(subject, task, schemes, batches, keep, solver, limit, progress)
    used = measures if limit is not None else measures[:1]
    costs = [MEASURES[name](subject.model, space.candidates, batches, progress) for name in used]
    if limit is not None:
        trials = list(_of_size(space, costs, measures, limit))
        best = _best(trials)
    else:
        assert budget.max_drop is not None
        trials = list(_of_quality(space, costs[0], budget.max_drop))
        best = _smallest(trials, budget.max_drop)
    return Found(best, tuple(trials), task.name, space.metric, space.reference, space.float_bytes)


@dataclass(frozen=True)
class _Space:
    """All that trials share. `others` are the bytes of what is not decided on, `smallest` those of
    the whole in the smallest options."""

    subject: Subject
    task: Task
    solver: Solver
    batches: list[dict[str, Tensor]]
    candidates: list[list[Candidate]]
    float_bytes: int
    others: int
    smallest: int
    metric: str
    reference: Metric
    progress: bool

    @classmethod
    def of(
        cls,
        subject: Subject,
        task: Task,
        schemes: Sequence[Scheme],
        batches: list[dict[str, Tensor]],
        keep: Sequence[str],
        solver: Solver,
        limit: int | None,
        progress: bool,
    ) -> "_Space":
        """Raises as _check_size, before the float model is evaluated, which may take long."""
        candidates = candidates_of(subject.model, schemes, keep, progress, solver, batches)
        whole = footprint(subject.model)
        others = whole.stored_bytes - sum(options[0].stored_bytes for options in candidates)
        smallest = others + sum(min(c.stored_bytes for c in options) for options in candidates)
        if limit is not None:
            _check_size(limit, smallest, whole)
        found = task.measure(subject, progress)
        name = found.main_metric
        if name is None:
            raise UsageError(f"task {task.name} has no metric to decide by")
        return cls(
            subject, task, solver, batches, candidates, whole.stored_bytes, others, smallest, name,
            found.metrics[name], progress,
        )  # fmt: skip

    @property
    def sizes(self) -> list[list[int]]:
        return [[c.stored_bytes for c in options] for options in self.candidates]

    def size(self, picked: Sequence[int]) -> int:
        """Bytes of the model with these options, as its candidates are."""
        return self.others + sum(own[i] for own, i in zip(self.sizes, picked, strict=True))

    def fitting(self, costs: Costs, limit: int) -> list[int]:
        """The options of least total cost in so many bytes."""
        return choose(self.sizes, costs, limit - self.others)

    def uniform(self, costs: Costs, limit: int) -> list[int] | None:
        """The single scheme of least total cost that fits, where one fits: a module that it cannot
        hold stays float."""
        best: tuple[float, list[int]] | None = None
        for scheme in dict.fromkeys(c.scheme for options in self.candidates for c in options):
            own = [
                next((i for i, c in enumerate(o) if c.scheme == scheme), 0) for o in self.candidates
            ]
            cost = sum(cost[i] for cost, i in zip(costs, own, strict=True))
            if self.size(own) <= limit and (best is None or cost < best[0]):
                best = cost, own
        return None if best is None else best[1]

    def tried(self, by: str, picked: Sequence[int], costs: Costs) -> Trial:
        """Make the model and evaluate it."""
        chosen = [options[i] for options, i in zip(self.candidates, picked, strict=True)]
        recipe = recipe_of(chosen)
        model = deepcopy(self.subject.model)
        data = self.batches if self.solver.data else None
        quantize(model, recipe, self.progress, data, solver=self.solver)
        stored = footprint(model)
        subject = replace(self.subject, name=by, model=model)
        metric = self.task.measure(subject, self.progress).metrics[self.metric]
        choices = tuple(
            Choice(c.module, c.scheme, c.decision.parameters, c.stored_bytes, cost[i])
            for c, i, cost in zip(chosen, picked, costs, strict=True)
        )
        drop = _drop(self.reference, metric)
        return Trial(by, recipe, choices, stored.stored_bytes, stored.bits_per_weight, metric, drop)


def _check_size(limit: int, smallest: int, whole: Footprint) -> None:
    """Raises UsageError where float fits, InputError where no recipe does."""
    if limit >= whole.stored_bytes:
        raise UsageError(
            f"the float model takes {whole.stored_bytes:,} bytes, within the budget of"
            f" {limit:,}: there is nothing to quantize"
        )
    if limit < smallest:
        raise InputError(
            f"the budget of {limit:,} bytes ({8 * limit / whole.parameters:.2f} bits per weight)"
            f" cannot be met: the smallest possible here is {smallest:,} bytes"
            f" ({8 * smallest / whole.parameters:.2f} bits per weight)"
        )


def _of_size(
    space: _Space, costs: Sequence[Costs], measures: Sequence[str], limit: int
) -> Iterator[Trial]:
    """Trials whose models, as made, fit."""
    made: dict[tuple[int, ...], int] = {}
    ways: dict[str, Callable[[int], list[int] | None]] = {
        name: partial(space.fitting, own) for name, own in zip(measures, costs, strict=True)
    }
    ways["one scheme"] = partial(space.uniform, costs[0])
    for name, way in tracked(ways.items(), "recipes", "way", space.progress):
        room = limit
        for _ in range(FITS):
            picked = way(room) if room >= space.smallest else None
            if picked is None:
                break
            if tuple(picked) not in made:
                trial = space.tried(name, picked, costs[0])
                made[tuple(picked)] = trial.stored_bytes
                if trial.stored_bytes <= limit:
                    yield trial
            too_much = made[tuple(picked)] - limit
            if too_much <= 0:
                break
            room = space.size(picked) - too_much


def _of_quality(space: _Space, costs: Costs, max_drop: float) -> Iterator[Trial]:
    """Bisection: sizes that keep the metric, ever smaller, and those between that do not."""
    low, high = space.smallest, space.float_bytes
    tried: dict[tuple[int, ...], Trial] = {}
    for step in tracked(range(STEPS), "recipes", "step", space.progress):
        limit = low if step == 0 else (low + high) // 2
        picked = space.fitting(costs, limit)
        if tuple(picked) not in tried:
            tried[tuple(picked)] = space.tried(f"{limit} bytes", picked, costs)
            yield tried[tuple(picked)]
        trial = tried[tuple(picked)]
        if trial.drop <= max_drop:
            high = min(high, trial.stored_bytes)
            if step == 0:
                return
        else:
            low = limit


def _best(trials: Sequence[Trial]) -> Trial:
    if not trials:
        raise InputError(
            "no recipe fits the budget: quantized weights took more bytes than was estimated"
        )
    measured = [trial for trial in trials if math.isfinite(trial.drop)]
    if not measured:
        raise InputError("no recipe that fits the budget has a metric that is a number")
    return min(measured, key=lambda trial: trial.drop)


def _smallest(trials: Sequence[Trial], max_drop: float) -> Trial:
    kept = [trial for trial in trials if trial.drop <= max_drop]
    if not kept:
        least = min(trials, key=lambda trial: trial.drop)
        raise InputError(
            f"no recipe that was evaluated keeps the drop within {max_drop:.2%}: the smallest was"
            f" {least.drop:.2%}, at {least.stored_bytes:,} bytes"
        )
    return min(kept, key=lambda trial: trial.stored_bytes)


def _drop(before: Metric, after: Metric) -> float:
    """By what share of it the metric is worse; NaN where one is not a number."""
    worse = after.value - before.value if before.better == "lower" else before.value - after.value
    return worse / abs(before.value) if before.value else worse
