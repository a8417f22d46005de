"""Which pictures a study gives, and the words that go with them."""

import math
from dataclasses import dataclass

from lowbit.evaluation.study import Histogram, ModelRecord, Study
from lowbit.report.comparison import deciding, shapes, tasks
from lowbit.report.pictures import experts, heatmap, histograms, speed, tradeoff
from lowbit.report.places import evenly
from lowbit.report.wording import MEBI

MOST_LAYERS = 24


@dataclass(frozen=True)
class Layer:
    """A module with the histograms of the models that quantize it."""

    id: str
    module: str
    pictures: tuple[str, ...]
    kept_by: tuple[str, ...]


@dataclass(frozen=True)
class Layers:
    """So many modules shown, of so many that have histograms."""

    shown: tuple[Layer, ...]
    of: int


@dataclass(frozen=True)
class Maps:
    legend: str
    pictures: tuple[tuple[str, str], ...]  # model, picture
    left_out: int


@dataclass(frozen=True)
class Tradeoff:
    """One task: quality against bits per weight and against bytes."""

    task: str
    metric: str
    conditions: str
    pictures: tuple[str, ...]
    frontier: tuple[str, ...]
    left_out: tuple[str, ...]


def everything(study: Study) -> list[str]:
    """A picture of all weights for each quantized or simulated model."""
    before = study.reference.weights
    return [
        histograms.histogram(f"all-{i}", "all modules", model.name, before, model.weights)
        for i, model in enumerate(study.models)
        if i and before is not None and model.weights is not None
        if histograms.drawable(before) and histograms.drawable(model.weights)
    ]


def layers(study: Study) -> Layers:
    before = _histograms(study.reference)
    floats = [_floats(model, before) for model in study.models[1:]]
    after = [_histograms(model) for model in study.models[1:]]
    modules = [
        name
        for name in before
        if any(
            name in found and name not in kept for found, kept in zip(after, floats, strict=True)
        )
    ]
    shown = []
    for row, module in enumerate(evenly(modules, MOST_LAYERS)):
        pictures, kept = [], []
        for column, model in enumerate(study.models[1:]):
            found = after[column]
            if module in floats[column]:
                kept.append(model.name)
            elif module in found:
                name = f"weights-{row}-{column}"
                old, new = before[module], found[module]
                pictures.append(histograms.histogram(name, module, model.name, old, new))
        shown.append(Layer(f"layer-{row}", module, tuple(pictures), tuple(kept)))
    return Layers(tuple(shown), len(modules))


def maps(study: Study) -> Maps | None:
    """One for each model with a known error, or None where there is none."""
    ends = heatmap.scale([model.modules for model in study.models])
    if ends is None:
        return None
    shown = [m for m in study.models if any(r.relative_error is not None for r in m.modules)]
    pictures = tuple(
        (model.name, heatmap.heatmap(f"error-{i}", model.name, model.modules, ends))
        for i, model in enumerate(shown)
    )
    most = max(heatmap.left_out(model.modules) for model in shown)
    return Maps(heatmap.legend("error-scale", ends), pictures, most)


def choices(study: Study) -> list[tuple[str, str]]:
    """Of each mixture whose tokens were counted, its name and the picture of its experts."""
    return [
        (model.name, experts.chosen(f"experts-{i}", model.name, model.experts))
        for i, model in enumerate(study.models)
        if any(map(any, model.experts.values()))
    ]


def tradeoffs(study: Study) -> list[Tradeoff]:
    """One for each task whose deciding metric at least two models have."""
    found: list[Tradeoff] = []
    for task, measured in tasks(study).items():
        metric = deciding(measured)
        known = {
            i: m.metrics[metric]
            for i, m in enumerate(measured)
            if m and metric in m.metrics and math.isfinite(m.metrics[metric].value)
        }
        if metric is None or len(known) < 2:
            continue
        better = next(iter(known.values())).better
        pictures = []
        for unit, label in (("bits", "bits per weight"), ("bytes", "stored MiB")):
            points = [
                tradeoff.Point(study.models[i].name, _size(study.models[i], unit), m.value, i == 0)
                for i, m in known.items()
            ]
            name = f"tradeoff-{len(found)}-{unit}"
            pictures.append(tradeoff.tradeoff(name, metric, better, label, points))
        best = tuple(points[i].name for i in tradeoff.on_frontier(points, better))
        out = tuple(m.name for i, m in enumerate(study.models) if i not in known)
        found.append(Tradeoff(task.name, metric, task.conditions, tuple(pictures), best, out))
    return found


def speeds(study: Study) -> list[str]:
    """A picture for each shape with a speed-up."""
    found: list[str] = []
    for shape, timings in shapes(study).items():
        rows = [
            (model.name, timing)
            for model, timing in zip(study.models, timings, strict=True)
            if timing is not None and speed.comparable(timing)
        ]
        if rows:
            found.append(speed.bars(f"speed-{len(found)}", shape.label, rows))
    return found


def _histograms(model: ModelRecord) -> dict[str, Histogram]:
    return {
        module.name: module.histogram
        for module in model.modules
        if module.histogram is not None and histograms.drawable(module.histogram)
    }


def _floats(model: ModelRecord, before: dict[str, Histogram]) -> set[str]:
    """The modules that it kept in float. A simulated model is float, and its weights differ."""
    return {
        m.name
        for m in model.modules
        if m.relative_error is None and not m.kernel and m.histogram == before.get(m.name)
    }


def _size(model: ModelRecord, unit: str) -> float:
    return {"bits": model.bits_per_weight, "bytes": model.stored_bytes / MEBI}[unit]
