"""Training: transformers' Trainer around a lesson, in float or towards integers.

OUT/
    checkpoints/    Trainer's own: model, optimizer, scheduler, random state
    float/          the trained model in float32, for further training
    int8/           the integer model (named as the recipe was asked for), for inference; of a plan
                    for binary codes it is the same model as float/
    training.json   settings, steps, scores of each, versions
    texts/          sources, references and each model's outputs, where a task writes texts
"""

import json
import shutil
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from lowbit.environment import describe
from lowbit.errors import UsageError
from lowbit.evaluation.study import Measurement, sayable
from lowbit.evaluation.task import Subject, agreement
from lowbit.progress import without_transformers_bars
from lowbit.qat.prepare import fake_quantized, finish_qat, prepare_qat
from lowbit.qat.projection import CodedWeight, prepare_codes
from lowbit.staging import staged, staged_file, writing
from lowbit.training.attention import trainable_attention
from lowbit.training.frequencies import bits_read
from lowbit.training.lesson import Lesson, Material
from lowbit.training.projections import Projections
from lowbit.training.settings import Settings
from lowbit.training.teachers import find_teacher
from lowbit.training.trainer import LessonTrainer, arguments, checkpoints, without_autocast


@dataclass(frozen=True)
class Outcome:
    """What training gave: measurements by model ("float", "fake-quantized", "integer")."""

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

    Raises UsageError for settings that are unknown or an output that is there already, InputError
    for unusable data, a loss that is not a number, or a disk that is full.
    """
    teach = find_teacher(task)
    recipe, _ = settings.recipe, settings.folder  # both say at once what cannot be
    done = (output / "training.json").exists()
    begun = checkpoints(output) if resume or not overwrite else []
    if (done or begun) and not (overwrite or resume):
        raise UsageError(
            f"{output} holds a training that was {'finished' if done else 'begun'} before:"
            " --resume goes on with it, --overwrite starts again"
        )
    if overwrite and not resume:
        # Else a later --resume could take one of these for its own.
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    # Seeded before the model is made: a new head is random.
    set_seed(settings.seed)
    lesson = teach(material)
    lesson.score.check(Subject("model", lesson.model, lesson.tokenizer))
    if settings.distill and lesson.new:
        raise UsageError(
            f"there is nothing to distill: {len(lesson.new)} parameters of the model are new, such"
            f" as {lesson.new[0]}; a model that was trained for the task can be distilled"
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
    start = time.perf_counter()
    # Subnormal numbers cost twice the time on CPUs, and nobody misses them.
    torch.set_flush_denormal(True)
    try:
        with trainable_attention(lesson.model, settings.bf16):
            trainer.train(resume_from_checkpoint=str(begun[-1]) if resume and begun else None)
    finally:
        torch.set_flush_denormal(False)
    seconds = time.perf_counter() - start
    if not trainer.is_world_process_zero():
        return Outcome(trainer.state.global_step, seconds, {}, ())
    with without_autocast(lesson.model):
        outcome = finish(lesson, output, settings, trainer.state.global_step, seconds, progress)
    write_texts(lesson, outcome, output / "texts")
    told = {"settings": settings.to_dict(), "environment": describe(), **outcome.to_dict()}
    with staged_file(output / "training.json") as unfinished:
        unfinished.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return outcome


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
    measurements = {"fake-quantized": score("fake-quantized")}
    save(model, tokenizer, folders[0], state_dict=trained_state(model))
    finish_qat(model, progress)
    folders.append(output / settings.folder)
    integer = score("integer")
    alike = agreement(integer, measurements["fake-quantized"])
    measurements["integer"] = replace(integer, metrics={**integer.metrics, **alike})
    save(model, tokenizer, folders[1])
    return Outcome(steps, seconds, measurements, tuple(folders), lesson.notes)


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
