"""What Markdown needs: text that stays text, fences that hold, and tables in place of pictures."""

import math
from typing import Any

from markupsafe import Markup

from lowbit import visible
from lowbit.evaluation.study import ModelRecord, Study
from lowbit.report.comparison import deciding, tasks
from lowbit.report.frontier import frontier
from lowbit.report.places import place
from lowbit.report.wording import UNMEASURED, decibels, number, size


def escape(value: Any) -> Markup:
    """One line of Markdown that reads as this text. Markup goes through as it is."""
    return value if isinstance(value, Markup) else Markup(visible.markdown(str(value)))


def fenced(text: str, language: str = "") -> Markup:
    """A code block that no line of `text` can close."""
    return Markup(visible.fenced(text, language))


def errors(study: Study) -> list[list[str]]:
    """[kind of module, for each model its range over the layers in dB]: the map as a table."""
    ranges: dict[str, list[list[float]]] = {}
    for index, model in enumerate(study.models):
        for module in model.modules:
            ratio = decibels(module.relative_error)
            if ratio is not None:
                at = place(module.name)
                kind = ".".join(filter(None, (at.stack, "*" if at.stack else "", at.kind)))
                ranges.setdefault(kind, [[] for _ in study.models])[index].append(ratio)
    return [[kind, *map(_range, row)] for kind, row in ranges.items()]


def _range(ratios: list[float]) -> str:
    finite = [ratio for ratio in ratios if not math.isnan(ratio)]
    if not ratios:
        return UNMEASURED
    if len(finite) < len(ratios):
        return f"{len(ratios) - len(finite)} of {len(ratios)} not a number"
    low, high = number(min(finite), 3), number(max(finite), 3)
    return low if low == high else f"{low} to {high}"


Standing = tuple[str, str, str, str, str]  # model, bits per weight, size, value, on the frontier


def standings(study: Study) -> list[tuple[str, list[Standing]]]:
    """(metric and task, models by rising size): the trade-off as a table."""
    found = []
    for task, measured in tasks(study).items():
        metric = deciding(measured)
        known = [
            (model, m.metrics[metric])
            for model, m in zip(study.models, measured, strict=True)
            if m and metric in m.metrics and math.isfinite(m.metrics[metric].value)
        ]
        if len(known) < 2:
            continue
        known.sort(key=lambda entry: entry[0].stored_bytes)
        better = known[0][1].better
        sign = 1 if better == "higher" else -1
        on = frontier([m.stored_bytes for m, _ in known], [sign * v.value for _, v in known])
        rows = [_standing(m, v.value, i in on) for i, (m, v) in enumerate(known)]
        label = task.name if metric == task.name else f"{metric} of {task.name}"
        found.append((f"{label} ({better} is better)", rows))
    return found


def _standing(model: ModelRecord, value: float, on_frontier: bool) -> Standing:
    bits = number(model.bits_per_weight, 3)
    on = "yes" if on_frontier else "no"
    return model.name, bits, size(model.stored_bytes), number(value), on
