"""The loss of a model relative to another, in percent, with a bootstrap interval (Efron &
Tibshirani 1993).

Items are resampled with replacement, the same ones for both models (paired). The deciding metric is
computed for each resample.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from lowbit.evaluation.study import Measurement
from lowbit.evaluation.task import Task

DRAWS = 1000
SHARE = 0.95


@dataclass(frozen=True)
class Loss:
    """The loss in percent of the reference's score; negative if the model is better. low, high: the
    95 % interval; None if items have no scores of their own."""

    metric: str
    percent: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.2f} … {self.high:.2f})"
        return f"{self.percent:.2f} %{interval}"


def loss(task: Task, before: Measurement, found: Measurement, seed: int = 0) -> Loss | None:
    """The loss of `found` relative to `before`, both of `task`; None if the reference has no score
    or the score 0."""
    name = before.main_metric
    if name is None or not before.metrics[name].value:
        return None
    sign = 1 if before.metrics[name].better == "higher" else -1

    def percent(old: float, new: float) -> float:
        return 100 * sign * (old - new) / abs(old) if old else math.nan

    whole = percent(before.metrics[name].value, found.metrics[name].value)
    old, new = task.resampled(before), task.resampled(found)
    if old is None or new is None:
        return Loss(name, whole)
    items = before.items
    chance = np.random.default_rng(seed)
    draws = [chance.integers(0, items, items) for _ in range(DRAWS)]
    drawn = np.array([percent(old(rows), new(rows)) for rows in draws])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Loss(name, whole)
    low, high = np.quantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Loss(name, whole, float(low), float(high))


def with_interval(
    task: Task, before: Measurement, found: Measurement, seed: int = 0
) -> Measurement:
    """`found` with the interval of its deciding metric, if items have scores of their own."""
    name = found.main_metric
    if name is None or name not in before.metrics or found.metrics[name].low is not None:
        return found
    lost = loss(task, before, found, seed)
    if lost is None or lost.low is None or lost.high is None:
        return found
    metric, old = found.metrics[name], before.metrics[name].value
    sign = 1 if metric.better == "higher" else -1
    low, high = sorted(old - sign * abs(old) * share / 100 for share in (lost.low, lost.high))
    return replace(found, metrics={**found.metrics, name: replace(metric, low=low, high=high)})
