"""Measure models on tasks: all models in the same way, the reference first."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.checkpoint.read import find
from lowbit.errors import UsageError
from lowbit.evaluation.bootstrap import with_interval
from lowbit.evaluation.experts import counted
from lowbit.evaluation.latency import ROUNDS, Shape, time_beside
from lowbit.evaluation.record import record
from lowbit.evaluation.study import ModelRecord, Study
from lowbit.evaluation.task import Subject, Task
from lowbit.inspect.environment import describe


@dataclass(frozen=True)
class EvaluationPlan:
    """The measurements of every model.

    shapes: the shapes to time, in `rounds` rounds; may be empty. pictures: whether to count
    histograms of weights and the experts that tasks choose, for a report. peak: whether to measure
    each model's peak memory in a separate process.
    """

    tasks: tuple[Task, ...] = ()
    shapes: tuple[Shape, ...] = ()
    pictures: bool = False
    peak: bool = True
    seed: int = 0
    rounds: int = ROUNDS

    def check(self, subject: Subject) -> None:
        """Raises UsageError if the model does not support a task, InputError for unusable data."""
        for task in self.tasks:
            task.check(subject)
        for shape in self.shapes:
            shape.check(subject.model)


def load_subject(model: str | Path, name: str | None = None) -> Subject:
    """Load a folder or hub id, with its tokenizer if it has one. Its name is the last part of the
    path.

    Raises InputError if the model is incomplete or its tokenizer is damaged.
    """
    folder = find(model)
    called = name or Path(str(model)).resolve().name
    return Subject(called, load_model(folder), load_tokenizer(folder))


def evaluate(
    models: Sequence[str | Path],
    plan: EvaluationPlan | Callable[[Subject], EvaluationPlan],
    against: str | Path | None = None,
    commands: Sequence[str] = (),
    progress: bool = True,
) -> Study:
    """Measure the models of some folders, relative to the reference `against`.

    If `against` is None, the first model is the reference. At most two models are loaded at a time.
    plan: what to measure, or a function from the loaded reference to a plan.

    Raises UsageError if the plan does not fit a model, InputError if models or data cannot be read.
    Both are raised before the first measurement.
    """
    if not models and against is None:
        raise UsageError("there is no model to evaluate")
    first, *others = ([against] if against is not None else []) + list(models)
    reference = load_subject(first)
    plan = plan if isinstance(plan, EvaluationPlan) else plan(reference)
    plan.check(reference)
    for model in others:  # before measuring, which takes minutes
        plan.check(load_subject(model))
    records = [examine(reference, find(first), plan, progress=progress)]
    for model in others:
        subject = load_subject(model)
        records.append(
            examine(subject, find(model), plan, reference, records[0], progress=progress)
        )
    return Study(distinct_names(records), describe(), plan.seed, tuple(commands))


def examine(
    subject: Subject,
    folder: Path | None,
    plan: EvaluationPlan,
    reference: Subject | None = None,
    reference_record: ModelRecord | None = None,
    progress: bool = True,
) -> ModelRecord:
    """Measure one model by the plan, relative to the reference and its record."""
    seen = record(subject, folder, reference, plan.pictures, plan.peak)
    found = reference_record.measurements if reference_record else ()
    before = dict(zip(plan.tasks, found, strict=bool(reference_record)))
    measurements = []
    experts: dict[str, tuple[int, ...]] = {}
    with counted(subject.model, experts) if plan.pictures and plan.tasks else nullcontext():
        for task in plan.tasks:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(plan.seed)
                if reference is None or task not in before:
                    measurements.append(task.measure(subject, progress))
                else:
                    both = subject, reference
                    beside = task.measure_beside(*both, before[task], progress)
                    measurements.append(with_interval(task, before[task], beside, plan.seed))
    other = None if reference is None else reference.model
    timings = time_beside(subject.model, other, plan.shapes, plan.rounds, progress)
    return replace(seen, measurements=tuple(measurements), timings=timings, experts=experts)


def distinct_names(records: Sequence[ModelRecord]) -> tuple[ModelRecord, ...]:
    """Add a number to the names of models with equal names."""
    seen: dict[str, int] = {}
    renamed = []
    for one in records:
        seen[one.name] = seen.get(one.name, 0) + 1
        again = f" ({seen[one.name]})" if seen[one.name] > 1 else ""
        renamed.append(replace(one, name=one.name + again))
    return tuple(renamed)
