"""How a training ends: what it learned is scored and written, in float and in integers."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from lowbit.checkpoint.atomic_write import staged, staged_file, writing
from lowbit.evaluation.bootstrap import Loss, loss
from lowbit.evaluation.study import Measurement, json_safe, structured
from lowbit.evaluation.task import Subject, Task, agreement
from lowbit.fallbacks import unwarned
from lowbit.progress import without_transformers_bars
from lowbit.qat.learned import LEARNED, learned_state, save_learned
from lowbit.qat.prepare import fake_quantized, finish_qat
from lowbit.training.lesson import Lesson
from lowbit.training.settings import Settings

FLOAT, FAKE_QUANTIZED, INTEGER = "float", "fake-quantized", "integer"


@dataclass(frozen=True)
class Outcome:
    """What training gave: measurements by model ("float", "fake-quantized", "integer"). seconds: of
    training, since it was last resumed.

    test: the same on data that chose no checkpoint, where the task has such. losses: what each
    model loses beside the float baseline, if one was trained. history: Trainer's log, and at each
    projection onto codes by how much it changed each weight.
    """

    steps: int
    seconds: float
    measurements: dict[str, Measurement]
    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    test: dict[str, Measurement] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "folders": [str(folder) for folder in self.folders],
            "notes": list(self.notes),
            "measurements": {name: json_safe(asdict(m)) for name, m in self.measurements.items()},
            "test": {name: json_safe(asdict(m)) for name, m in self.test.items()},
            "losses": {name: json_safe(asdict(each)) for name, each in self.losses.items()},
            "history": json_safe(list(self.history)),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises KeyError, TypeError, AttributeError for anything else."""
        measured = {
            key: {name: structured(Measurement, m) for name, m in stored.get(key, {}).items()}
            for key in ("measurements", "test")
        }
        return cls(
            stored["steps"],
            stored["seconds"],
            measured["measurements"],
            tuple(map(Path, stored["folders"])),
            tuple(stored["notes"]),
            measured["test"],
            {name: Loss(**each) for name, each in stored["losses"].items()},
            tuple(stored["history"]),
        )

    def again(self, earlier: Self) -> Self:
        """With what an end that is repeated cannot find out again."""
        notes = tuple(dict.fromkeys((*earlier.notes, *self.notes)))
        return replace(self, seconds=earlier.seconds, notes=notes, history=earlier.history)

    def beside(self, baseline: "Outcome", lesson: Lesson) -> "Outcome":
        """With the scores of the float baseline, and what is lost of them: of the test set where
        there is one."""
        test = {FLOAT: baseline.test[FLOAT], **self.test} if baseline.test else self.test
        measurements = {FLOAT: baseline.measurements[FLOAT], **self.measurements}
        task, by_model = (lesson.test, test) if lesson.test else (lesson.score, measurements)
        losses = _losses(task, by_model)
        notes = self.notes if losses else (*self.notes, "no loss in percent: the baseline scores 0")
        return replace(self, measurements=measurements, test=test, losses=losses, notes=notes)


def _losses(task: Task, by_model: Mapping[str, Measurement]) -> dict[str, Loss]:
    found = {n: loss(task, by_model[FLOAT], m) for n, m in by_model.items() if n != FLOAT}
    return {name: each for name, each in found.items() if each is not None}


def finish(
    lesson: Lesson, output: Path, settings: Settings, steps: int, seconds: float, progress: bool
) -> Outcome:
    """Score and save the float model and, where there is one, the integer model."""
    model, tokenizer = lesson.model.eval(), lesson.tokenizer
    measurements: dict[str, Measurement] = {}
    test: dict[str, Measurement] = {}

    def score(name: str) -> None:
        subject = Subject(name, model, tokenizer)
        measurements[name] = lesson.score.measure(subject, progress)
        if lesson.test is not None:
            test[name] = lesson.test.measure(subject, progress)

    folders = [output / "float"]
    if settings.recipe is None:
        score(FLOAT)
        save(model, tokenizer, folders[0])
        return Outcome(steps, seconds, measurements, tuple(folders), lesson.notes, test)
    notes = (*lesson.notes, *never_rounded(model))
    with unwarned():  # fake quantization has no fast path
        score(FAKE_QUANTIZED)
    # Binary codes are what the float weights stand for already.
    learned = settings.options if settings.plan is None else None
    added = learned_state(model)
    state = {name: t for name, t in model.state_dict().items() if name not in added}
    with staged(folders[0]) as unfinished, writing(folders[0]):
        _write(model, tokenizer, unfinished, state_dict=state)
        if learned is not None:
            save_learned(model, learned, unfinished / LEARNED)
    finish_qat(model.cpu(), progress)  # where integers have kernels
    folders.append(output / settings.folder)
    score(INTEGER)
    for found in filter(None, (measurements, test)):
        alike = agreement(found[INTEGER], found[FAKE_QUANTIZED])
        found[INTEGER] = replace(found[INTEGER], metrics={**found[INTEGER].metrics, **alike})
    save(model, tokenizer, folders[1])
    return Outcome(steps, seconds, measurements, tuple(folders), notes, test)


def never_rounded(model: PreTrainedModel) -> Iterator[str]:
    """What is said of layers that training left in float to its end."""
    layers = fake_quantized(model).values()
    late = [layer for layer in layers if layer.start and int(layer.steps) <= layer.start]
    if late:
        yield (
            f"{len(late)} of {len(layers)} layers were never trained with rounding: it was to start"
            f" after {late[0].start} passes, and there were {int(late[0].steps)}"
        )


def starts_at_random(lesson: Lesson) -> Iterator[str]:
    """What is said of a head that the checkpoint lacks."""
    if 0 < len(lesson.new) < len(list(lesson.model.parameters())):
        yield (
            f"{len(lesson.new)} parameters start at random, which the checkpoint lacks:"
            f" {', '.join(lesson.new[:3])}{', …' if len(lesson.new) > 3 else ''}"
        )


def write_texts(lesson: Lesson, outcome: Outcome, output: Path) -> None:
    """`output`/texts: one file each for what was given, what was wanted, and what each model
    wrote, a line each. output.txt and ref.txt beside it: what the last model wrote of the test set,
    or of the scored set if there is no test set, and what was wanted."""
    if not lesson.texts:
        return
    outputs = {name: map(str, m.predictions) for name, m in outcome.measurements.items()}
    with staged(output / "texts") as unfinished:
        for name, lines in {**lesson.texts, **outputs}.items():
            (unfinished / f"{name}.txt").write_text(_lines(lines), encoding="utf-8")
    *_, last = (outcome.test or outcome.measurements).values()
    wanted = lesson.test_references or lesson.texts["references"]
    for name, lines in (("output.txt", map(str, last.predictions)), ("ref.txt", wanted)):
        with staged_file(output / name) as unfinished:
            unfinished.write_text(_lines(lines), encoding="utf-8")


def _lines(texts: Any) -> str:
    return "".join(" ".join(text.splitlines()) + "\n" for text in texts)


def save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    with staged(folder) as unfinished, writing(folder):
        _write(model, tokenizer, unfinished)


def _write(model: PreTrainedModel, tokenizer: Any, folder: Path, **options: Any) -> None:
    with without_transformers_bars():
        model.save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)
