"""What was won and what was lost, in sentences: one for each quantized model, one for all.

    int4 is 3.1× smaller and 1.8× as fast; perplexity rises by 1.7 % (49.5 → 50.4; lower is better).

Size is that of the stored tensors. Speed is the reference's seconds over the model's, in the same
rounds; over several shapes it is the range. Quality is the deciding metric of each task.
"""

import math

from lowbit.evaluation.study import Measurement, Metric, ModelRecord, Study
from lowbit.report import wording
from lowbit.report.comparison import (
    ALIKE,
    FACTOR_ABOVE,
    Change,
    ComparedTask,
    change,
    deciding,
    tasks,
)


def model_verdict(study: Study, index: int) -> str:
    """One sentence about the model at `index` against the reference. Slower is said as slower,
    worse as worse, and what was not measured as such."""
    model = study.models[index]
    body = f"{_size_and_speed(study.reference, model)}; {_quality(study, index)}"
    return f"{model.name} is {body}."


def overall_verdict(study: Study) -> str:
    """One sentence about the study: the only model's own, or which model is best at what."""
    reference, quantized = study.reference, study.models[1:]
    if not quantized:
        return f"Only {reference.name} was measured: there is nothing to compare it with."
    if len(quantized) == 1:
        return model_verdict(study, 1)
    parts = [_smallest(reference, quantized), _fastest(quantized), *_closest(study)]
    return f"Of {len(quantized)} models compared with {reference.name}: {'; '.join(parts)}."


def speedups(model: ModelRecord) -> list[float]:
    """Those that are numbers, slowest first."""
    found = [t.speedup for t in model.timings if t.speedup is not None]
    return sorted(s for s in found if math.isfinite(s) and s > 0)


def all_within_noise(model: ModelRecord) -> bool:
    """Whether it was timed, and the rounds contradict each other in every shape."""
    timed = [timing for timing in model.timings if timing.speedup is not None]
    return bool(timed) and all(timing.within_noise for timing in timed)


def _size_and_speed(reference: ModelRecord, model: ModelRecord) -> str:
    size, gains = _size(reference, model), speedups(model)
    if not gains:
        why = "only measured without the reference" if model.timings else "not measured"
        return f"{size}; its speed was {why}"
    slowest, fastest = gains[0], gains[-1]
    span = wording.times(slowest)
    if span != wording.times(fastest):
        span = f"{span} to {wording.times(fastest)}"
    over = f" over {len(gains)} shapes" if len(gains) > 1 else ""
    if all_within_noise(model):
        return f"{size}, and its speed is that of {reference.name} within noise ({span}{over})"
    if fastest < 1 - ALIKE:
        return f"{size} but slower ({span} the speed of {reference.name}{over})"
    if slowest < 1 - ALIKE:
        return f"{size} and {span} as fast{over}, so slower in some"
    if fastest <= 1 + ALIKE:
        return f"{size} and about as fast ({span}{over})"
    return f"{size} and {span} as fast{over}"


def _size(reference: ModelRecord, model: ModelRecord) -> str:
    if not (reference.stored_bytes > 0 and model.stored_bytes > 0):
        return "of unmeasured size"
    ratio = reference.stored_bytes / model.stored_bytes
    if ratio > 1 + ALIKE:
        return f"{wording.times(ratio)} smaller"
    return "about the same size" if ratio >= 1 - ALIKE else f"{wording.times(1 / ratio)} larger"


def _quality(study: Study, index: int) -> str:
    found = {task: ms for task, ms in tasks(study).items() if _measured(ms[index])}
    if not found:
        return "its quality was not measured"
    several = len({task.name for task in tasks(study)}) > 1
    return "; ".join(_metric(task, ms, index, several) for task, ms in found.items())


def _measured(measurement: Measurement | None) -> bool:
    return measurement is not None and bool(measurement.metrics)


def _metric(task: ComparedTask, found: list[Measurement | None], index: int, several: bool) -> str:
    measurement, name = found[index], deciding([found[index]])
    assert measurement is not None and name is not None
    metric = measurement.metrics[name]
    label = f"{name} on {task.name}" if several and name not in task.name else name
    difference = change(found, name, index)
    if difference is not None:
        return f"{label} {_moves(difference)}"
    return f"{label} is {_plainly(metric)}, with nothing to compare it with"


def _plainly(metric: Metric) -> str:
    return f"{wording.number(metric.value)} ({metric.better} is better)"


def _moves(found: Change) -> str:
    before, after = wording.pair(found.before.value, found.after.value)
    better = f"{found.after.better} is better"
    if math.isnan(found.after.value):
        return f"is not a number (it was {before}): the model is broken"
    if not math.isfinite(found.difference):
        return f"goes from {before} to {after} ({better})"
    if found.effect == "same":
        return f"is unchanged ({after})"
    verb = "rises" if found.difference > 0 else "falls"
    if found.factor is None:
        by = wording.number(abs(found.difference), 2)
    elif found.factor - 1 > FACTOR_ABOVE:
        return f"is {wording.times(found.factor)} as high ({before} → {after}; {better})"
    else:
        by = wording.percent(found.factor - 1)
    noise = "; within noise" if found.effect == "noise" else ""
    return f"{verb} by {by} ({before} → {after}; {better}{noise})"


def _smallest(reference: ModelRecord, models: tuple[ModelRecord, ...]) -> str:
    best = min(models, key=lambda model: model.stored_bytes)
    return f"{best.name} is the smallest ({_size(reference, best)})"


def _fastest(models: tuple[ModelRecord, ...]) -> str:
    """By the geometric mean over the shapes of each."""
    timed = [(model, gains) for model in models if (gains := speedups(model))]
    if not timed:
        return "speed was not compared"
    means = [(math.exp(sum(map(math.log, gains)) / len(gains)), model) for model, gains in timed]
    best, model = max(means, key=lambda entry: entry[0])
    name, mean = model.name, " on average" if any(len(gains) > 1 for _, gains in timed) else ""
    mean += ", within noise" if all_within_noise(model) else ""
    if best < 1 - ALIKE:
        return f"none is faster ({name} comes nearest, {wording.times(best)} the speed{mean})"
    return f"{name} is the fastest ({wording.times(best)} as fast{mean})"


def _overlap(one: Measurement | None, other: Measurement | None, name: str) -> bool:
    """Whether the intervals of a metric overlap; False if one has no interval."""
    assert one is not None and other is not None
    a, b = one.metrics[name], other.metrics[name]
    if None in (a.low, a.high, b.low, b.high):
        return False
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    return a.low <= b.high and b.low <= a.high


def _closest(study: Study) -> list[str]:
    """For each task the quantized model with the best deciding metric, or those that may be it:
    intervals that overlap name no best."""
    parts = []
    for task, found in tasks(study).items():
        measured = [i for i in range(1, len(found)) if _measured(found[i])]
        if not measured:
            continue
        first, name = found[measured[0]], deciding([found[measured[0]]])
        assert first is not None and name is not None
        values = {
            i: m.metrics[name].value for i in measured if (m := found[i]) and name in m.metrics
        }
        values = {i: value for i, value in values.items() if not math.isnan(value)}
        if not values:
            parts.append(f"{name} is not a number for any of them")
            continue
        sign = 1 if first.metrics[name].better == "higher" else -1
        best = max(values, key=lambda i: sign * values[i])
        alike = [i for i in values if i != best and _overlap(found[i], found[best], name)]
        difference = change(found, name, best)
        against = f", {difference.words}" if difference and difference.words else ""
        label = f"{name} on {task.name}" if name not in task.name else name
        value = f"{wording.number(values[best])}{against}"
        if alike:
            names = " and ".join(study.models[i].name for i in sorted((best, *alike)))
            parts.append(f"the {label} of {names} is the same within noise, the best ({value})")
        else:
            parts.append(f"{study.models[best].name} has the best {label} ({value})")
    return parts or ["quality was not measured"]
