"""The numbers of the report as rows: one column for each model, the reference first."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from lowbit.evaluation.study import Measurement, ModelRecord, Study, Timing
from lowbit.report import wording
from lowbit.report.comparison import ALIKE, ComparedShape, change, metric_names, shapes, tasks
from lowbit.report.wording import UNMEASURED


@dataclass(frozen=True)
class Cell:
    """A number, how it compares with the reference's, and whether that is "better" or "worse"."""

    text: str = UNMEASURED
    detail: str = ""
    effect: str = ""


@dataclass(frozen=True)
class Row:
    label: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    title: str
    note: str
    rows: tuple[Row, ...]


def groups(study: Study) -> list[Group]:
    """The table of models: size, speed, and each task."""
    found = [
        Group(
            "Size",
            "everything counted: codes, scales, zero points, padding, what stayed float",
            tuple(_sizes(study)),
        )
    ]
    timed = shapes(study)
    if timed:
        counts = sorted({shape.threads for shape in timed})
        threads = wording.plural(counts[0], "thread")
        if len(counts) > 1:
            threads = f"{', '.join(map(str, counts))} threads"
        rounds = [t.rounds for timings in timed.values() for t in timings if t]
        least, most = min(rounds), max(rounds)
        over = f"{least}" if least == most else f"{least} to {most}"
        note = (
            f"median of {over} rounds, {threads}; ± half the distance of the quartiles; each model"
            " and the reference ran in the same rounds, and in small print is the reference’s time"
            " in those"
        )
        rows = [row for shape, timings in timed.items() for row in _times(shape, timings)]
        found.append(Group("Speed", note, tuple(rows)))
    for task, measured in tasks(study).items():
        rows = [_metric(name, measured) for name in metric_names(measured)]
        if rows:
            found.append(Group(task.name, task.conditions, tuple(rows)))
    return found


def unmeasured(study: Study) -> bool:
    """Whether the table of models has a hole to be explained."""
    return any(
        cell.text == UNMEASURED for g in groups(study) for row in g.rows for cell in row.cells
    )


@dataclass(frozen=True)
class Worst:
    """A module of a model, and how much of it was lost."""

    model: str
    module: str
    stored_as: str
    parameters: int
    ratio: str


def worst(study: Study) -> list[Worst]:
    """The modules with the lowest signal-to-noise ratio, three of each model."""
    found = []
    for model in study.models:
        ratios = [
            (_ratio(m.relative_error), m) for m in model.modules if m.relative_error is not None
        ]
        # What is no number is worse than anything.
        ratios.sort(key=lambda entry: -math.inf if math.isnan(entry[0]) else entry[0])
        for ratio, module in ratios[:3]:
            words = wording.number(ratio, 3) + (" dB" if math.isfinite(ratio) else "")
            found.append(Worst(model.name, module.name, module.stored_as, module.parameters, words))
    return found


def kernels(model: ModelRecord) -> list[tuple[str, str, int]]:
    """(kernel, why, modules), in the order of the model."""
    counts: dict[tuple[str, str], int] = {}
    for module in model.modules:
        if module.kernel:
            counts[module.kernel, module.why] = counts.get((module.kernel, module.why), 0) + 1
    if not counts:
        return [(kernel, "", 0) for kernel in model.kernels]
    return [(kernel, why, count) for (kernel, why), count in counts.items()]


def _ratio(error: float | None) -> float:
    ratio = wording.decibels(error)
    return math.nan if ratio is None else ratio


SIZES: tuple[tuple[str, str, Callable[[ModelRecord], int | None]], ...] = (
    ("stored tensors", "", lambda model: model.stored_bytes),
    ("on disk", "the safetensors files of the folder", lambda model: model.disk_bytes),
    ("in memory, loaded", "", lambda model: model.resident_bytes),
    ("in memory, after one forward pass", "", lambda model: model.resident_after_forward_bytes),
    ("peak", "of a process that loads it and runs it once", lambda model: model.peak_bytes),
)


def _sizes(study: Study) -> Iterator[Row]:
    models = study.models
    bits = [model.bits_per_weight for model in models]
    cells = [Cell(wording.number(b, 3), *_against(bits[0], b, i)) for i, b in enumerate(bits)]
    yield Row("bits per weight", "scales included", tuple(cells))
    for label, note, read in SIZES:
        counts = [read(model) for model in models]
        yield Row(
            label,
            note,
            tuple(Cell(wording.size(c), *_against(counts[0], c, i)) for i, c in enumerate(counts)),
        )


def _against(before: float | None, after: float | None, index: int) -> tuple[str, str]:
    """How many times smaller `after` is, and whether that is better."""
    if index == 0 or before is None or after is None or not (before > 0 and after > 0):
        return "", ""
    ratio = before / after
    if abs(ratio - 1) <= ALIKE:
        return "", ""
    if ratio > 1:
        return f"{wording.times(ratio)} smaller", "better"
    return f"{wording.times(1 / ratio)} larger", "worse"


def _times(shape: ComparedShape, timings: list[Timing | None]) -> Iterator[Row]:
    first, *others = timings
    beside = [t for t in others if t is not None and t.reference_seconds is not None]
    seconds, rates = _seconds(first), _rate(first)
    if beside:  # of the rounds that ratios come from, not of a run of its own
        used = [t.reference_seconds for t in beside if t.reference_seconds is not None]
        seconds = _span(wording.duration, used)
        rates = _span(
            partial(wording.number, digits=3),
            [t.tokens / s for t, s in zip(beside, used, strict=True) if s > 0],
        )
    yield Row(shape.label, "time", (seconds, *map(_seconds, others)))
    yield Row(shape.label, "tokens per second", (rates, *map(_rate, others)))


def _span(words: Callable[[float], str], values: list[float]) -> Cell:
    """From the least to the most."""
    if not values:
        return Cell()
    ends = dict.fromkeys(map(words, (min(values), max(values))))
    return Cell(" … ".join(ends))


def _rate(timing: Timing | None) -> Cell:
    if timing is None or timing.seconds <= 0:
        return Cell()
    rate, gain = timing.tokens_per_second, timing.speedup
    beside = "" if gain is None or gain <= 0 else f"beside {wording.number(rate / gain, 3)}"
    return Cell(wording.number(rate, 3), beside)


def _seconds(timing: Timing | None) -> Cell:
    if timing is None:
        return Cell()
    text = wording.duration(timing.seconds)
    if timing.spread > 0:
        text += f" ± {wording.duration(timing.spread / 2)}"
    gain = timing.speedup if timing.seconds > 0 else None
    if gain is None or timing.reference_seconds is None:
        return Cell(text)
    beside = f" · {wording.duration(timing.reference_seconds)}"
    if timing.within_noise:
        return Cell(text, f"{wording.times(gain)}, within noise{beside}")
    if gain >= 1:
        effect = "better" if gain > 1 + ALIKE else ""
        return Cell(text, f"{wording.times(gain)} as fast{beside}", effect)
    effect = "worse" if gain < 1 - ALIKE else ""
    return Cell(text, f"{wording.times(gain)} the speed{beside}", effect)


def _metric(name: str, measured: list[Measurement | None]) -> Row:
    metrics = [m.metrics.get(name) if m else None for m in measured]
    first = next(metric for metric in metrics if metric)
    notes = list(dict.fromkeys(metric.note for metric in metrics if metric and metric.note))
    cells = []
    for index, metric in enumerate(metrics):
        if metric is None:
            cells.append(Cell())
            continue
        difference = change(measured, name, index) if index else None
        detail = difference.words if difference else ""
        if metric.low is not None and metric.high is not None:
            detail += f" ({' … '.join(wording.pair(metric.low, metric.high))})"
        effect = difference.effect if difference and difference.effect in EFFECTS else ""
        cells.append(Cell(wording.number(metric.value), detail, effect))
    if any(metric and metric.low is not None for metric in metrics):
        notes.append("in brackets its interval of 95 %, items paired with the reference's")
    return Row(name, "; ".join([f"{first.better} is better", *notes]), tuple(cells))


EFFECTS = {"better", "worse"}
