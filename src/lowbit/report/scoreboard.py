"""The verdict in three figures for each model: size, speed, quality."""

from dataclasses import dataclass

from lowbit.evaluation.study import Study
from lowbit.report import wording
from lowbit.report.comparison import ALIKE, change, deciding, tasks
from lowbit.report.verdict import all_within_noise, speedups
from lowbit.report.wording import UNMEASURED, times


@dataclass(frozen=True)
class Figure:
    """A number, what it is, and "better", "worse" or nothing."""

    value: str
    label: str
    effect: str = ""


def figures(study: Study, index: int) -> tuple[Figure, Figure, Figure]:
    return _size(study, index), _speed(study, index), _quality(study, index)


def _size(study: Study, index: int) -> Figure:
    before, after = study.reference.stored_bytes, study.models[index].stored_bytes
    if not (before > 0 and after > 0):
        return Figure(UNMEASURED, "size not measured")
    if abs(before / after - 1) <= ALIKE:
        return Figure(times(before / after), "the same size")
    if before > after:
        return Figure(times(before / after), "smaller", "better")
    return Figure(times(after / before), "larger", "worse")


def _speed(study: Study, index: int) -> Figure:
    gains = speedups(study.models[index])
    if not gains:
        return Figure(UNMEASURED, "speed not measured")
    slowest, fastest = times(gains[0]), times(gains[-1])
    span = slowest if slowest == fastest else f"{slowest.removesuffix('×')}–{fastest}"
    if all_within_noise(study.models[index]):
        return Figure(span, "the speed, within noise")
    if gains[-1] < 1:
        return Figure(span, "the speed", "worse" if gains[-1] < 1 - ALIKE else "")
    return Figure(span, "as fast", "better" if gains[0] > 1 + ALIKE else "")


def _quality(study: Study, index: int) -> Figure:
    """Of the first task: its change, or the number itself where there is none to tell."""
    for measured in tasks(study).values():
        found, name = measured[index], deciding([measured[index]])
        if found is None or name is None:
            continue
        difference = change(measured, name, index)
        if difference is None or not difference.words:
            return Figure(wording.number(found.metrics[name].value), name)
        effect = difference.effect if difference.effect in ("better", "worse") else ""
        return Figure(difference.words, name, effect)
    return Figure(UNMEASURED, "quality not measured")
