"""Training: transformers' Trainer around a lesson, in float or towards integers.

OUT/
    checkpoints/    Trainer's own: model, optimizer, scheduler, random state; and what was asked
                    for, all of them alike
    float/          the trained model in float32, for further training
    int8/           the integer model (named as the recipe was asked for), for inference; of a plan
                    for binary codes it is the same model as float/
    training.json   settings, steps, scores of each, versions
    texts/          sources, references and each model's outputs, where a task writes texts
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from lowbit.checkpoint.atomic_write import staged, staged_file, writing
from lowbit.checkpoint.documents import read_json
from lowbit.checkpoint.work_folder import claimed, tidy
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.study import Measurement, sayable
from lowbit.evaluation.task import Subject, agreement
from lowbit.inspect.environment import describe
from lowbit.progress import without_transformers_bars
from lowbit.qat.prepare import fake_quantized, finish_qat, prepare_qat
from lowbit.qat.projection import CodedWeight, prepare_codes
from lowbit.training.attention import trainable_attention
from lowbit.training.frequencies import bits_read
from lowbit.training.lesson import Lesson, Material
from lowbit.training.projections import Projections
from lowbit.training.settings import OUTPUTS, Settings
from lowbit.training.teachers import find_teacher
from lowbit.training.trainer import LessonTrainer, arguments, checkpoints, without_autocast

SETTINGS_FILE = Path("checkpoints") / "settings.json"


@dataclass(frozen=True)
class Outcome:
    """What training gave: measurements by model ("float", "fake-quantized", "integer"). seconds: of
    training, since it was last resumed."""

    steps: int
    seconds: float
    measurements: dict[str, Measurement]
    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "folders": [str(folder) for folder in self.folders],
            "notes": list(self.notes),
            "measurements": {name: sayable(asdict(m)) for name, m in self.measurements.items()},
        }


def train(
    task: str,
    material: Material,
    output: Path,
    settings: Settings,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Outcome:
    """Train a model, and write it to folders of `output`.

    resume: go on from the last checkpoint in `output`, if there is one.

    Raises UsageError for settings that are unknown, an output that is there already, or going on
    otherwise than the checkpoint's training began, or what a training would replace but no training
    wrote; InputError for unusable data, a loss that is not a
    number, or a disk that is full.
    """
    teach = find_teacher(task)
    recipe, folder = settings.recipe, settings.folder  # both say at once what cannot be
    done = (output / "training.json").exists()
    there = [name for name in (*OUTPUTS, folder) if (output / name).exists()]
    if there and not done and not (output / SETTINGS_FILE).exists():
        raise UsageError(
            f"{output / there[0]} is there already, and no training says that it wrote it: choose"
            " another output"
        )
    begun = checkpoints(output) if resume or not overwrite else []
    if (done or begun) and not (overwrite or resume):
        raise UsageError(
            f"{output} holds a training that was {'finished' if done else 'begun'} before:"
            " --resume goes on with it, --overwrite starts again"
        )
    if done and not begun and not overwrite:
        raise UsageError(
            f"{output} holds a training that was finished and no checkpoint to go on from:"
            " --overwrite starts again"
        )
    asked = {"task": task, **material.to_dict(), **settings.to_dict()}
    if begun:
        check_settings(output, asked)
    # Seeded before the model is made: a new head is random.
    set_seed(settings.seed)
    lesson = teach(material)
    lesson.score.check(Subject("model", lesson.model, lesson.tokenizer))
    if settings.distill and lesson.new:
        raise UsageError(
            f"there is nothing to distill: {len(lesson.new)} parameters of the model are new, such"
            f" as {lesson.new[0]}; a model that was trained for the task can be distilled"
        )
    labels = lesson.examples[0].get("labels")
    if settings.label_smoothing and (labels is None or isinstance(labels, float)):
        raise UsageError(
            f"label smoothing {settings.label_smoothing} spreads over classes, of which this task"
            " has none"
        )
    teacher = deepcopy(lesson.model) if settings.distill else None
    weights: tuple[CodedWeight, ...] = ()
    if settings.plan is not None:
        weights = prepare_codes(lesson.model, settings.plan.recipe)
        lesson = replace(lesson, notes=(*lesson.notes, *bits_read(lesson)))
    elif recipe is not None:
        prepare_qat(lesson.model, recipe, settings.options)
    trainer = LessonTrainer(
        lesson, arguments(output, settings, lesson.best, progress), teacher, settings.distill
    )
    if settings.plan is not None:
        trainer.add_callback(Projections(weights, settings.plan, trainer.score_before))
    first = trainer.is_world_process_zero()
    # One process of a training writes for all; another training is told at once.
    with claimed(output) if first else nullcontext():
        if first:
            tidy(output)
            if not begun:
                begin(output, asked)
        start = time.perf_counter()
        # Subnormal numbers cost twice the time on CPUs, and nobody misses them.
        torch.set_flush_denormal(True)
        try:
            with trainable_attention(lesson.model, settings.bf16):
                trainer.train(resume_from_checkpoint=str(begun[-1]) if resume and begun else None)
        finally:
            torch.set_flush_denormal(False)
        seconds = time.perf_counter() - start
        if not first:
            return Outcome(trainer.state.global_step, seconds, {}, ())
        with without_autocast(lesson.model):
            outcome = finish(lesson, output, settings, trainer.state.global_step, seconds, progress)
        write_texts(lesson, outcome, output / "texts")
        told = {"settings": settings.to_dict(), "environment": describe(), **outcome.to_dict()}
        with staged_file(output / "training.json") as unfinished:
            unfinished.write_text(json.dumps(told, indent=1), encoding="utf-8")
        return outcome


def begin(output: Path, asked: Mapping[str, Any]) -> None:
    """Note what is trained and how, in place of the checkpoints of an earlier training, which a
    later --resume could take for its own."""
    file = output / SETTINGS_FILE
    with staged(file.parent) as unfinished, writing(output):
        (unfinished / file.name).write_text(json.dumps(asked, indent=1), encoding="utf-8")
    # Only now: until here another process would take what is there for a stranger's.
    (output / "training.json").unlink(missing_ok=True)


def check_settings(output: Path, asked: Mapping[str, Any]) -> None:
    """Raises UsageError where the training in `output` began otherwise."""
    file = output / SETTINGS_FILE
    if not file.exists():
        return
    before = read_json(file)
    if not isinstance(before, dict):
        raise InputError(f"{file} is not what a training wrote: --overwrite starts again")
    for name, value in json.loads(json.dumps(asked)).items():
        if before.get(name) != value:
            raise UsageError(
                f"the training in {output} began with {name} {before.get(name)} and cannot go on"
                f" with {value}: --overwrite starts again"
            )


def finish(
    lesson: Lesson, output: Path, settings: Settings, steps: int, seconds: float, progress: bool
) -> Outcome:
    """Score and save the float model and, where there is one, the integer model."""
    model, tokenizer = lesson.model.eval(), lesson.tokenizer

    def score(name: str) -> Measurement:
        return lesson.score.measure(Subject(name, model, tokenizer), progress)

    folders = [output / "float"]
    if settings.recipe is None:
        measurements = {"float": score("float")}
        save(model, tokenizer, folders[0])
        return Outcome(steps, seconds, measurements, tuple(folders), lesson.notes)
    notes = (*lesson.notes, *never_rounded(model))
    measurements = {"fake-quantized": score("fake-quantized")}
    save(model, tokenizer, folders[0], state_dict=trained_state(model))
    finish_qat(model, progress)
    folders.append(output / settings.folder)
    integer = score("integer")
    alike = agreement(integer, measurements["fake-quantized"])
    measurements["integer"] = replace(integer, metrics={**integer.metrics, **alike})
    save(model, tokenizer, folders[1])
    return Outcome(steps, seconds, measurements, tuple(folders), notes)


def never_rounded(model: PreTrainedModel) -> Iterator[str]:
    """What is said of layers that training left in float to its end."""
    layers = fake_quantized(model).values()
    late = [layer for layer in layers if layer.start and int(layer.steps) <= layer.start]
    if late:
        yield (
            f"{len(late)} of {len(layers)} layers were never trained with rounding: it was to start"
            f" after {late[0].start} passes, and there were {int(late[0].steps)}"
        )


def write_texts(lesson: Lesson, outcome: Outcome, folder: Path) -> None:
    """One file each for what was given, what was wanted, and what each model wrote, a line each."""
    if lesson.texts:
        outputs = {name: map(str, m.predictions) for name, m in outcome.measurements.items()}
        with staged(folder) as unfinished:
            for name, lines in {**lesson.texts, **outputs}.items():
                text = "".join(" ".join(line.split("\n")) + "\n" for line in lines)
                (unfinished / f"{name}.txt").write_text(text, encoding="utf-8")


def trained_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What the float model had, as training left it, without what fake quantization added."""
    added = {
        f"{name}.{key}"
        for name, module in fake_quantized(model).items()
        for key in module.state_dict()
        if key not in ("weight", "bias")
    }
    return {name: t for name, t in model.state_dict().items() if name not in added}


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, **options: Any) -> None:
    with staged(folder) as unfinished, without_transformers_bars(), writing(folder):
        model.save_pretrained(unfinished, **options)
        tokenizer.save_pretrained(unfinished)
