"""What may be compared: the same task on the same items, the same shape, model beside model.

Two measurements are of one task where name, data, unit, number of items and settings all agree;
otherwise they stand in rows of their own and no change is computed between them.

A change of a metric that counts down to zero (perplexity, loss, an error rate: lower is better) is
relative, because such numbers have no scale of their own. A change of a score (accuracy, F1, BLEU,
a correlation: higher is better) is the difference in the score's own unit: a percentage of a
percentage misleads, and whether a score ends at 1 or at 100 is not recorded.
"""

import math
from dataclasses import dataclass
from typing import Literal

from lowbit.evaluation.study import Measurement, Metric, Study, Timing
from lowbit.report.wording import SMALLEST_SHARE, number, percent, plural, times

Effect = Literal["better", "worse", "same", "noise", "unknown"]
# A relative change above this is told as a factor: "is 60× as high", not "rises by 5,900 %".
FACTOR_ABOVE = 2.0
# Nobody would call a difference within this share a difference in size or speed.
ALIKE = 0.02


@dataclass(frozen=True)
class Change:
    """One metric of the reference and of a model."""

    before: Metric
    after: Metric

    @property
    def effect(self) -> Effect:
        """By the direction of the metric. "noise" if the interval of `after` holds the value
        before; "unknown" if either is not a number."""
        old, new = self.before.value, self.after.value
        if math.isnan(old) or math.isnan(new):
            return "unknown"
        if old == new:
            return "same"
        low, high = self.after.low, self.after.high
        if low is not None and high is not None and low <= old <= high:
            return "noise"
        return "better" if (new > old) == (self.after.better == "higher") else "worse"

    @property
    def factor(self) -> float | None:
        """after / before for a metric told in relative terms, else None."""
        old, new = self.before.value, self.after.value
        ratio = self.after.better == "lower" and old > 0 and new >= 0
        return new / old if ratio and math.isfinite(old) and math.isfinite(new) else None

    @property
    def difference(self) -> float:
        return self.after.value - self.before.value

    @property
    def words(self) -> str:
        """Short, for a table: +1.7 %, −0.032, 60×, "< 0.01 % lower", or nothing to say."""
        if self.effect == "unknown" or not math.isfinite(self.difference):
            return ""
        if self.effect == "same":
            return "±0"
        sign = "+" if self.difference > 0 else "−"
        if self.factor is None:
            return sign + number(abs(self.difference), 2)
        if self.factor - 1 > FACTOR_ABOVE:
            return times(self.factor)
        if abs(self.factor - 1) < SMALLEST_SHARE:
            return f"< {percent(SMALLEST_SHARE)} {'higher' if self.difference > 0 else 'lower'}"
        return sign + percent(self.factor - 1)


@dataclass(frozen=True)
class ComparedTask:
    """What makes two measurements comparable."""

    name: str
    data: str
    unit: str
    items: int
    settings: tuple[tuple[str, str | int | float | None], ...]

    @classmethod
    def of(cls, found: Measurement) -> "ComparedTask":
        return cls(found.task, found.data, found.unit, found.items, tuple(found.settings.items()))

    @property
    def conditions(self) -> str:
        """Data, items and settings in one line."""
        settings = [f"{k} {v}" for k, v in self.settings if v is not None]
        return ", ".join([self.data, f"{self.items:,} {self.unit}", *settings])


@dataclass(frozen=True)
class ComparedShape:
    """What makes two timings comparable."""

    batch: int
    length: int
    new_tokens: int
    threads: int

    @classmethod
    def of(cls, timing: Timing) -> "ComparedShape":
        return cls(timing.batch, timing.length, timing.new_tokens, timing.threads)

    @property
    def label(self) -> str:
        if self.new_tokens:
            return f"generate {self.batch} × {self.new_tokens} after {plural(self.length, 'token')}"
        return f"forward {self.batch} × {plural(self.length, 'token')}"


def tasks(study: Study) -> dict[ComparedTask, list[Measurement | None]]:
    """Every task with what each model of the study, in order, made of it."""
    found: dict[ComparedTask, list[Measurement | None]] = {}
    for index, model in enumerate(study.models):
        for measurement in model.measurements:
            found.setdefault(ComparedTask.of(measurement), [None] * len(study.models))[index] = (
                measurement
            )
    return found


def shapes(study: Study) -> dict[ComparedShape, list[Timing | None]]:
    """Every shape with the timing of each model of the study, in order."""
    found: dict[ComparedShape, list[Timing | None]] = {}
    for index, model in enumerate(study.models):
        for timing in model.timings:
            found.setdefault(ComparedShape.of(timing), [None] * len(study.models))[index] = timing
    return found


def deciding(measurements: list[Measurement | None]) -> str | None:
    """The metric that decides: the first of the first model that has any."""
    return next((m.main_metric for m in measurements if m and m.metrics), None)


def metric_names(measurements: list[Measurement | None]) -> list[str]:
    """The metrics that any of them has, in the order of the first that names each."""
    return list(dict.fromkeys(name for m in measurements if m for name in m.metrics))


def change(measurements: list[Measurement | None], name: str, index: int) -> Change | None:
    """From the reference, the first, to the model at `index`, or None where either was not
    measured."""
    before, after = measurements[0], measurements[index]
    if (
        before is None
        or after is None
        or not {name} <= before.metrics.keys() & after.metrics.keys()
    ):
        return None
    return Change(before.metrics[name], after.metrics[name])
