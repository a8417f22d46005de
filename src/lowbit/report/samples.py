"""Outputs of several models for the same source, side by side."""

from dataclasses import dataclass

from lowbit.evaluation.study import Measurement, Sample, Study
from lowbit.report.comparison import tasks
from lowbit.report.differ import Segment, differences
from lowbit.report.places import evenly

MOST = 12  # of one task
LONGEST = 2000  # characters: what nobody would read beside five others
CUT = " […]"


@dataclass(frozen=True)
class Output:
    """What a model made of a source. `segments` mark what differs from the reference's output."""

    model: str
    segments: tuple[Segment, ...]
    compared: bool

    @property
    def identical(self) -> bool:
        return self.compared and all(segment.kind == "same" for segment in self.segments)


@dataclass(frozen=True)
class Side:
    source: str
    expected: str | None
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Sides:
    """The samples of one task: so many shown, of so many. `cut` says that some text is longer."""

    task: str
    conditions: str
    shown: tuple[Side, ...]
    of: int
    cut: bool


def side_by_side(study: Study) -> list[Sides]:
    found = []
    for task, measured in tasks(study).items():
        tables = [_by_source(measurement) for measurement in measured]
        keys = list(dict.fromkeys(key for table in tables for key in table))
        if keys:
            shown = evenly(keys, MOST)
            sides = tuple(_side(study, tables, key) for key in shown)
            cut = any(_long(t[key]) for t in tables for key in shown if key in t)
            found.append(Sides(task.name, task.conditions, sides, len(keys), cut))
    return found


Key = tuple[str, int]  # a source, and how many before it were the same


def _by_source(measurement: Measurement | None) -> dict[Key, Sample]:
    found: dict[Key, Sample] = {}
    for sample in measurement.samples if measurement else ():
        nth = 0
        while (sample.source, nth) in found:
            nth += 1
        found[sample.source, nth] = sample
    return found


def _side(study: Study, tables: list[dict[Key, Sample]], key: Key) -> Side:
    reference = tables[0].get(key)
    outputs = []
    for index, (model, table) in enumerate(zip(study.models, tables, strict=True)):
        sample = table.get(key)
        if sample is None:
            continue
        if index == 0 or reference is None:
            outputs.append(Output(model.name, (Segment("same", "", _start(sample.output)),), False))
        else:
            segments = differences(_start(reference.output), _start(sample.output))
            outputs.append(Output(model.name, tuple(segments), True))
    expected = next((s.reference for t in tables if (s := t.get(key)) and s.reference), None)
    expected = None if expected is None else _start(expected)
    return Side(_start(key[0]), expected, tuple(outputs))


def _start(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + CUT


def _long(sample: Sample) -> bool:
    texts = sample.source, sample.output, sample.reference or ""
    return any(len(text) > LONGEST for text in texts)
