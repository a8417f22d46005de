"""The demo from end to end: train, quantize, measure, report."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.demo.cache import HELD_OUT, Trained, trained
from lowbit.demo.model import DemoSettings
from lowbit.errors import check_at_least
from lowbit.evaluation.evaluate import EvaluationPlan, examine
from lowbit.evaluation.latency import Shape
from lowbit.evaluation.study import ModelRecord, Study
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.generate import Generate
from lowbit.evaluation.tasks.perplexity import Perplexity
from lowbit.inspect.environment import describe
from lowbit.progress import progress_bar
from lowbit.quantization.in_memory import quantize
from lowbit.report import check_paths, write

# With -all: a table left in float would be a quarter of this model.
RECIPES = ("int8-all", "int8-zeropoint-all", "int4-all", "bcq3-all")
PROMPT = "Return a new"
NEW_TOKENS = 40
SHAPE = Shape(1, 16, NEW_TOKENS)
ROUNDS = 3


@dataclass(frozen=True)
class Report:
    """What the demo found, the float model first, and where it left that model and the report."""

    study: Study
    model: Path
    from_cache: bool
    outputs: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "study": self.study.to_dict(),
            "model": str(self.model),
            "from_cache": self.from_cache,
            "outputs": [str(path) for path in self.outputs],
        }


def run(
    outputs: Sequence[Path],
    settings: DemoSettings,
    retrain: bool = False,
    progress: bool = True,
    commands: Sequence[str] = (),
) -> Report:
    """Train (or take from the cache), compare RECIPES with float, and write the report.

    Raises UsageError for a report that cannot be written or fewer than 1 step, InputError for a
    cache that cannot be written or a Python without its documentation.
    """
    check_paths(outputs)
    check_at_least("steps", settings.steps, 1)
    base = trained(settings, retrain, progress)
    study = Study(
        _compare(base, settings.seed, progress), describe(), settings.seed, tuple(commands)
    )
    write(study, outputs)
    return Report(study, base.folder, base.from_cache, tuple(outputs))


def _compare(base: Trained, seed: int, progress: bool) -> tuple[ModelRecord, ...]:
    held_out = str(base.folder / HELD_OUT)
    tasks = (
        Perplexity(held_out, samples=0),
        Generate(text=PROMPT, new_tokens=NEW_TOKENS, seed=seed),
    )
    plan = EvaluationPlan(tasks, (SHAPE,), pictures=True, peak=False, seed=seed, rounds=ROUNDS)
    reference = Subject("float32", base.model, base.tokenizer)
    with progress_bar(1 + len(RECIPES), "comparing", "model", progress) as bar:
        records = [examine(reference, base.folder, plan, progress=False)]
        bar.update()
        for recipe in RECIPES:
            model = deepcopy(base.model)
            quantize(model, recipe, progress=False)
            subject = Subject(recipe, model, base.tokenizer)
            records.append(examine(subject, None, plan, reference, records[0], progress=False))
            bar.update()
    return tuple(records)
