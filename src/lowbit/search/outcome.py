"""What a search found: choices, trials, and the best of them."""

from dataclasses import dataclass
from typing import Any

from lowbit.conversion.recipe import Recipe
from lowbit.evaluation.study import Metric, json_safe
from lowbit.schemes import Scheme


@dataclass(frozen=True)
class Choice:
    """What becomes of one module. `cost` is its sensitivity: everything else in float."""

    module: str
    scheme: Scheme | None
    parameters: int
    stored_bytes: int
    cost: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.stored_bytes / self.parameters


@dataclass(frozen=True)
class Trial:
    """A recipe that was made and evaluated. `by` says how its choices were found; `drop` is the
    share by which the metric got worse."""

    by: str
    recipe: Recipe
    choices: tuple[Choice, ...]
    stored_bytes: int
    bits_per_weight: float
    metric: Metric
    drop: float


@dataclass(frozen=True)
class Found:
    """The trial that meets the budget best, all trials, and the float model's metric."""

    best: Trial
    trials: tuple[Trial, ...]
    task: str
    metric: str
    reference: Metric
    float_bytes: int

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = json_safe(
            {
                "task": self.task,
                "metric": self.metric,
                "reference": self.reference.value,
                "float_bytes": self.float_bytes,
                "best": self.trials.index(self.best),
                "trials": [_trial_dict(trial) for trial in self.trials],
            }
        )
        return told


def _trial_dict(trial: Trial) -> dict[str, Any]:
    schemes = [rule.to_dict() for rule in trial.recipe.rules]
    choices = [
        {**scheme, "stored_bytes": c.stored_bytes, "parameters": c.parameters, "cost": c.cost}
        for scheme, c in zip(schemes, trial.choices, strict=True)
    ]
    return {
        "by": trial.by,
        "stored_bytes": trial.stored_bytes,
        "bits_per_weight": trial.bits_per_weight,
        "value": trial.metric.value,
        "drop": trial.drop,
        "choices": choices,
    }
