"""A model that is trained for a task in float, and what integers made of it lose.

Every model is one piece of the work folder (pieces.py): the float one, those that training by
distillation makes of it (docs/training.md), and those that are quantized without training. A
training that was killed goes on from its last checkpoint. What a table says of a model, beside the
float one that it was made of, is a row, which outlives the work folder: what has a row is not made
again. If another needs the float model and it is gone, it is trained again with the same seed; on
another processor its bits differ, so each row keeps the float score that it was found beside.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pieces import Pieces
from torch import Tensor

import lowbit
from lowbit.checkpoint.documents import read_json
from lowbit.checkpoint.load import load_model
from lowbit.conversion.recipe import Recipe, load_recipe
from lowbit.evaluation.bootstrap import loss
from lowbit.evaluation.study import Measurement, json_safe, structured
from lowbit.evaluation.task import Subject, Task
from lowbit.training.ending import FAKE_QUANTIZED, FLOAT, INTEGER, Outcome, save
from lowbit.training.lesson import Lesson, Material
from lowbit.training.settings import Settings
from lowbit.training.teachers import find_teacher
from lowbit.training.train import DONE, train

# How a model is fine-tuned in float, but for what a task needs otherwise.
FINE_TUNING = Settings(
    learning_rate=5e-5,
    epochs=3,
    batch_size=32,
    bf16=True,
    evaluate_during_training=False,
    save_steps=50,
)
CALIBRATION_ROWS = 128
# What distillation changes of the float training's settings, unless told otherwise.
DISTILLED = {"learning_rate": 2e-6, "distill": 1.0}
DISTILLED_SHARE = 0.25  # of the float training's epochs


@dataclass(frozen=True)
class Model:
    """One piece. measurement, fake: what the task found of it, and of the model that training saw;
    bytes: of its weights' file; seconds: of training, since it was last resumed."""

    measurement: Measurement
    bytes: int
    fake: Measurement | None = None
    seconds: float | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Model":
        fake = stored["fake"]
        return cls(
            structured(Measurement, stored["measurement"]),
            stored["bytes"],
            None if fake is None else structured(Measurement, fake),
            stored["seconds"],
        )

    @property
    def same(self) -> float | None:
        """The share of items on which integers predict what training saw."""
        found = self.measurement.metrics.get("agreement")
        return None if found is None else found.value


@dataclass(frozen=True)
class Row:
    """What a table says of a model: the scores of the float one and of this one, the loss in
    percent and its interval; same: as in `Model`; smaller: how many times its file is smaller."""

    metric: str
    before: float
    value: float
    percent: float
    low: float | None
    high: float | None
    same: float | None
    smaller: float


@dataclass(frozen=True)
class FineTuned:
    """One task, and one seed of it. rows: what is known of its models; pieces: the models, in
    `work`. distilled: recipes that are trained towards, and what that changes of DISTILLED;
    recipes: those of quantization without training."""

    task: str
    label: str
    material: Material
    settings: Settings
    rows: Pieces
    pieces: Pieces
    work: Path
    distilled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipes: Sequence[str | Recipe] = ()

    @property
    def name(self) -> str:
        return f"{self.label} {self.settings.seed}"

    @property
    def folder(self) -> Path:
        return self.work / self.name.replace(" ", "-")

    @property
    def float_folder(self) -> Path:
        return self.folder / "none" / "float"

    @cached_property
    def lesson(self) -> Lesson:
        """Of the trained float model: the task that scores it, and the examples it learned from."""
        return find_teacher(self.task)(replace(self.material, model=str(self.float_folder)))

    @property
    def score(self) -> Task:
        return self.lesson.score

    def plan(self) -> dict[str, Callable[[], Model]]:
        """How each model is made, by the name of its arm: in float, then what is quick."""
        trained = {distilled_name(recipe): recipe for recipe in self.distilled}
        return {
            FLOAT: self.train_float,
            **{called(recipe): lambda r=recipe: self.quantize(r) for recipe in self.recipes},
            **{name: lambda r=recipe: self.distill(r) for name, recipe in trained.items()},
        }

    def find(self, arm: str) -> Model:
        """A model, made if it is not there yet."""
        make = self.plan()[arm]
        stored = self.pieces.find(f"{self.name} {arm}", lambda: json_safe(asdict(make())))
        return Model.from_dict(stored)

    def known(self) -> dict[str, Model]:
        """The models that are there, by arm."""
        names = {arm: f"{self.name} {arm}" for arm in self.plan()}
        found = self.pieces.found
        return {arm: Model.from_dict(found[n]) for arm, n in names.items() if n in found}

    @property
    def arms(self) -> list[str]:
        """Those that have a row."""
        return [arm for arm in self.plan() if arm != FLOAT]

    def compare(self, arm: str) -> Row:
        """The row of an arm; made, with the models that it needs, if it is not known yet."""
        stored = self.rows.find(f"{self.name} {arm}", lambda: asdict(self._compare(arm)))
        return Row(**stored)

    def _compare(self, arm: str) -> Row:
        base, model = self.find(FLOAT), self.find(arm)
        lost = loss(self.score, base.measurement, model.measurement)
        if lost is None:
            raise SystemExit(f"{self.name}: the float model's score is 0")
        before, value = (m.measurement.metrics[lost.metric].value for m in (base, model))
        found = lost.metric, before, value, lost.percent, lost.low, lost.high
        return Row(*found, model.same, base.bytes / model.bytes)

    def compared(self) -> dict[str, Row]:
        """The rows that are known, by arm."""
        names = {arm: f"{self.name} {arm}" for arm in self.arms}
        found = self.rows.found
        return {arm: Row(**found[name]) for arm, name in names.items() if name in found}

    def machines(self) -> list[str]:
        """The letters of the machines that found the rows, one for each processor."""
        letters: dict[str, str] = {}
        for name in (f"{self.name} {arm}" for arm in self.compared()):
            letters.setdefault(self.rows.made[name]["processor"], self.rows.letter(name))
        return list(letters.values())

    def train_float(self) -> Model:
        return self._train("none", self.material, self.settings)

    def distill(self, recipe: str) -> Model:
        epochs = DISTILLED_SHARE * self.settings.epochs
        changes = {"epochs": epochs, **DISTILLED, **self.distilled[recipe]}
        # The teacher has no dropout either.
        material = replace(self.material, model=str(self.float_folder), dropout=0.0)
        return self._train(recipe, material, replace(self.settings, qat=recipe, **changes))

    def _train(self, name: str, material: Material, settings: Settings) -> Model:
        output = self.folder / name
        if (output / DONE).exists():
            outcome = Outcome.from_dict(read_json(output / DONE))
        else:
            outcome = train(self.task, material, output, settings, resume=True)
        found = outcome.measurements
        last = found.get(INTEGER, found.get(FLOAT))
        assert last is not None
        model = Model(
            last, weights_bytes(outcome.folders[-1]), found.get(FAKE_QUANTIZED), outcome.seconds
        )
        if settings.qat != "none":
            shutil.rmtree(output / "float", ignore_errors=True)  # 4 times the integers' size
        return model

    def quantize(self, recipe: str | Recipe) -> Model:
        model = load_model(self.float_folder)
        static = any(rule.is_static for rule in load_recipe(recipe).rules)
        lowbit.quantize(model, recipe, calibration=self.calibration() if static else None)
        output = self.folder / f"post-training-{called(recipe)}"
        save(model, self.material.tokenizer, output)
        measured = self.score.measure(Subject(called(recipe), model, self.material.tokenizer))
        return Model(measured, weights_bytes(output))

    def calibration(self) -> list[dict[str, Tensor]]:
        """Examples of the training set, evenly spread, as the model takes them."""
        examples = self.lesson.examples
        step = max(1, len(examples) // CALIBRATION_ROWS)
        batch = self.lesson.collate(examples[::step][:CALIBRATION_ROWS])
        names = self.material.tokenizer.model_input_names
        return [{name: batch[name] for name in names if name in batch}]


def called(recipe: str | Recipe) -> str:
    return recipe if isinstance(recipe, str) else recipe.name


def distilled_name(recipe: str) -> str:
    return f"{recipe} distilled"


def weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def table(studies: Sequence[FineTuned]) -> Iterator[str]:
    """Every row that is known."""
    columns = "task | seed | metric | float | model | value | loss, % | interval | same | × smaller"
    yield f"| {columns} | machine |"
    yield "|---" * (len(columns.split("|")) + 1) + "|"
    for study in studies:
        for arm, row in study.compared().items():
            interval = "" if row.low is None else f"{row.low:+.2f} … {row.high:+.2f}"
            yield (
                f"| {study.label} | {study.settings.seed} | {row.metric}"
                f" | {100 * row.before:.2f} | {arm} | {100 * row.value:.2f}"
                f" | {row.percent:+.2f} | {interval}"
                f" | {'' if row.same is None else f'{row.same:.2%}'}"
                f" | {row.smaller:.2f} | {study.rows.letter(f'{study.name} {arm}')} |"
            )


def trained_again(studies: Sequence[FineTuned]) -> Iterator[str]:
    """What is said of float models that more than one machine trained."""
    for study in studies:
        if len(study.machines()) > 1:
            yield f"{study.name}: each of the machines {' and '.join(study.machines())} trained a"
            yield "float model with this seed; bits differ between processors, and each row is"
            yield "beside the float model of its own machine.\n"


def summary(studies: Sequence[FineTuned]) -> Iterator[str]:
    """By arm: the loss on each task, in percent of the sum over seeds; the mean; the worst."""
    rows = [(s.label, arm, row) for s in studies for arm, row in s.compared().items()]
    labels = list(dict.fromkeys(s.label for s in studies))
    yield f"| model | {' | '.join(labels)} | mean | worst |"
    yield "|---" * (len(labels) + 3) + "|"
    for arm in dict.fromkeys(arm for _, arm, _ in rows):
        losses: dict[str, float] = {}
        for label in labels:
            mine = [row for *of, row in rows if of == [label, arm]]
            if mine:
                lost = sum(row.percent * abs(row.before) for row in mine)
                losses[label] = lost / sum(abs(row.before) for row in mine)
        cells = [f"{losses[label]:+.2f} %" if label in losses else "–" for label in labels]
        over_all = ["–", "–"]  # unless it has every task
        if len(losses) == len(labels):
            mean, worst = sum(losses.values()) / len(losses), max(losses.values())
            over_all = [f"{mean:+.2f} %", f"{worst:+.2f} %"]
        yield f"| {arm} | {' | '.join(cells + over_all)} |"


def missing(studies: Sequence[FineTuned]) -> Iterator[str]:
    """What has not been made, by study."""
    for study in studies:
        known = study.compared()
        absent = [arm for arm in study.arms if arm not in known]
        if absent:
            yield f"{study.name} ({', '.join(absent) if known else 'all'})"


def options(description: str | None, data: Path, page: str) -> argparse.ArgumentParser:
    """What every bench of trained models is told."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--work", type=Path, required=True)
    made.add_argument("--data", type=Path, default=data)
    made.add_argument("--train", action="store_true", help="make what is missing")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--write", action="store_true", help=f"write docs/results/{page}")
    return made
