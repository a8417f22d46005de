"""Training: transformers' Trainer around a lesson, in float or towards integers.

OUT/
    checkpoints/    how the training began and, until it has finished, Trainer's own: model,
                    optimizer, scheduler, random state; all of them alike
    float/          the trained model in float32, for further training, and beside it, in
                    qat.safetensors, what else was learned (qat/learned.py)
    int8/           the integer model (named as the recipe was asked for), for inference; of a plan
                    for binary codes it is the same model as float/
    baseline/       the same training in float, where it was asked for
    training.json   settings, steps, scores of each, versions
    texts/          sources, references and each model's outputs, where a task writes texts;
                    output.txt and ref.txt have those of the test set
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from lowbit.checkpoint.atomic_write import staged, staged_file, writing
from lowbit.checkpoint.documents import read_json
from lowbit.checkpoint.work_folder import claimed, tidy
from lowbit.conversion.recipe import names_a_folder
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.task import Subject
from lowbit.inspect.environment import describe
from lowbit.qat.prepare import QatOptions, prepare_qat
from lowbit.qat.projection import CodedWeight, prepare_codes
from lowbit.training import bfloat16
from lowbit.training.ending import Outcome, finish, starts_at_random, write_texts
from lowbit.training.frequencies import bits_read
from lowbit.training.lesson import Lesson, Material, Teacher
from lowbit.training.origin import origin
from lowbit.training.projections import Projections
from lowbit.training.settings import OUTPUTS, Settings
from lowbit.training.teachers import find_teacher
from lowbit.training.trainer import LessonTrainer, arguments, checkpoints, without_autocast

SETTINGS_FILE = Path("checkpoints") / "settings.json"
REPLACED = Path("checkpoints") / "replaced.json"  # what an earlier training told in DONE
DONE = "training.json"
STRANGE = "is not what a training wrote: --overwrite starts again"


def train(
    task: str,
    material: Material,
    output: Path,
    settings: Settings,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    baseline: bool = False,
    keep_checkpoints: bool = False,
) -> Outcome:
    """Train a model, and write it to folders of `output`.

    resume: go on from the last checkpoint in `output`, if there is one; of a training that has
    finished the end is repeated: its models are scored and written again. baseline: first train the
    float model in the same way, and tell what is lost beside it.

    Raises UsageError for settings that are unknown, an output that is there already, going on
    otherwise than the checkpoint's training began, or files of an output that no training wrote;
    InputError for unusable data, a loss or weight that is not finite, or a full disk.
    """
    with claiming(output):
        teach, recipe = find_teacher(task), settings.recipe  # both say at once what cannot be
        if baseline and recipe is None:
            raise UsageError(
                "the baseline is float, and so is this training: give a --qat or a --bcq"
            )
        there = check_begin(output, settings, resume, overwrite)
        asked = {"task": task, **material.to_dict(), **settings.to_dict()}
        if resume and (there.checkpoints or there.earlier is not None):
            check_settings(output, asked)
        elif isinstance(material.model, str):
            check_model(material.model, output)
        earlier = there.earlier if resume else None
        before = None
        if baseline or (earlier is not None and earlier.losses):
            # From labels alone; what is there of it goes on or stays.
            floats = replace(settings, qat="none", plan=None, distill=0.0, options=QatOptions())
            folder = output / "baseline"
            before = finished(folder, {**asked, **floats.to_dict()}) if resume else None
            if before is None:
                before = train(
                    task,
                    material,
                    folder,
                    floats,
                    resume,
                    overwrite,
                    progress,
                    keep_checkpoints=keep_checkpoints,
                )
        # Seeded before the model is made: a new head is random.
        set_seed(settings.seed)
        if earlier is not None and settings.plan is None:
            if not first_process():
                return Outcome(earlier.steps, earlier.seconds, {}, ())
            made = prepare(teach, replace(material, model=str(output / "float")), settings)
            taken = earlier.steps, earlier.seconds
            lesson = replace(made.lesson, notes=())  # the earlier outcome has them
            outcome = finish(lesson, output, settings, *taken, progress).again(earlier)
            return end(lesson, outcome, before, output, asked)
        made = prepare(teach, material, settings)
        trainer = made.trainer(output, settings, progress)
        first = first_process()
        if first:
            tidy(output)
            if not there.checkpoints:
                begin(output, asked)
        last = str(there.checkpoints[-1]) if resume and there.checkpoints else None
        seconds = learn(trainer, last)
        steps = trainer.state.global_step
        if not first:
            return Outcome(steps, seconds, {}, ())
        with without_autocast(made.lesson.model):
            outcome = finish(made.lesson, output, settings, steps, seconds, progress)
        outcome = replace(outcome, history=tuple(trainer.state.log_history))
        if earlier is not None:
            return end(made.lesson, outcome.again(earlier), before, output, asked)
        remove_replaced(output, outcome, keeps_baseline=before is not None)
        outcome = end(made.lesson, outcome, before, output, asked)
        if not keep_checkpoints:
            for checkpoint in (output / "checkpoints").glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        return outcome


def first_process() -> bool:
    """Of the processes of one training, the first writes for all."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) < 2
    return alone or os.environ.get("RANK", "0") == "0"


@contextmanager
def claiming(output: Path) -> Iterator[None]:
    """No other training writes `output` inside.

    Raises UsageError at once if another training writes it.
    """
    with claimed(output) if first_process() else nullcontext():
        yield


@dataclass(frozen=True)
class Begun:
    """What is there of an earlier training: the checkpoints to go on from, and the outcome, if it
    has finished. Its end is repeated, or it is replaced."""

    checkpoints: tuple[Path, ...] = ()
    earlier: Outcome | None = None


def check_begin(output: Path, settings: Settings, resume: bool, overwrite: bool) -> Begun:
    """Raises UsageError for an output that is there already, before anything is loaded; InputError
    for one that goes on and is damaged."""
    if resume and overwrite:
        raise UsageError("give --resume or --overwrite, one of them")
    done = (output / DONE).exists()
    check_output(output, settings.folder, done)
    begun = () if overwrite else tuple(checkpoints(output))
    there = done or any((output / "checkpoints").glob("checkpoint-*"))
    if there and not (overwrite or resume):
        raise UsageError(
            f"{output} holds a training that was {'finished' if done else 'begun'} before:"
            " --resume continues it, --overwrite starts again"
        )
    if done and resume and settings.plan is not None and not begun:
        raise UsageError(
            f"{output} holds a training that was finished and no checkpoint to go on from:"
            " --overwrite starts again"
        )
    try:
        return Begun(begun, outcome_of(output / DONE) if done else None)
    except InputError:
        if resume:
            raise
        return Begun(begun)


def outcome_of(file: Path) -> Outcome:
    """That of a training that has finished. Raises InputError for a damaged file."""
    try:
        return Outcome.from_dict(read_json(file))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} {STRANGE}") from error


def check_model(model: str, output: Path) -> None:
    """Raises UsageError for a model that the training would replace."""
    if Path(model).resolve().is_relative_to(output.resolve()) and Path(model).exists():
        raise UsageError(f"{output} holds the model {model}: choose another output")


def remove_replaced(output: Path, outcome: Outcome, keeps_baseline: bool) -> None:
    """Remove what the training that was replaced wrote there, and this one did not."""
    file = output / REPLACED
    if not file.exists():
        return
    with suppress(InputError):  # a damaged file names nothing
        earlier = outcome_of(file)
        names = {each.name for each in earlier.folders} - {each.name for each in outcome.folders}
        for name in filter(names_a_folder, names):
            shutil.rmtree(output / name, ignore_errors=True)
        if earlier.losses and not keeps_baseline:
            shutil.rmtree(output / "baseline", ignore_errors=True)
    file.unlink()


@dataclass(frozen=True)
class Prepared:
    """A lesson whose model has fake-quantized modules if it is trained towards a recipe; the model
    that it is distilled from, if it is; the weights of a plan for binary codes."""

    lesson: Lesson
    teacher: PreTrainedModel | None
    weights: tuple[CodedWeight, ...]

    def trainer(self, output: Path, settings: Settings, progress: bool) -> LessonTrainer:
        given = arguments(output, settings, self.lesson.best, progress)
        trainer = LessonTrainer(self.lesson, given, self.teacher, settings.distill)
        if settings.plan is not None:
            trainer.add_callback(
                Projections(self.weights, settings.plan, trainer.score_before, trainer.naming_step)
            )
        return trainer


def prepare(teach: Teacher, material: Material, settings: Settings) -> Prepared:
    """Raises UsageError, InputError for what cannot be learned so, before any step is made."""
    recipe = settings.recipe
    start = origin(material, recipe, settings.options)
    lesson = teach(start.material)
    check_lesson(lesson, settings)
    lesson.score.check(Subject("model", lesson.model, lesson.tokenizer))
    said = *starts_at_random(lesson), *bfloat16.unused(settings.bf16)
    lesson = replace(lesson, notes=(*start.notes, *lesson.notes, *said))
    teacher = deepcopy(lesson.model) if settings.distill else None
    weights: tuple[CodedWeight, ...] = ()
    if settings.plan is not None:
        weights = prepare_codes(lesson.model, settings.plan.recipe)
        lesson = replace(lesson, notes=(*lesson.notes, *bits_read(lesson)))
    elif recipe is not None:
        prepare_qat(lesson.model, recipe, settings.options)
        if start.learned is not None:
            start.learned.put(lesson.model)
    return Prepared(lesson, teacher, weights)


def learn(trainer: LessonTrainer, checkpoint: str | None) -> float:
    """Train to the end; the seconds that it took. Raises InputError as LessonTrainer does."""
    start = time.perf_counter()
    # Subnormal numbers cost twice the time on CPUs, and nobody misses them.
    torch.set_flush_denormal(True)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        torch.set_flush_denormal(False)
    trainer.check_weights()
    return time.perf_counter() - start


def end(
    lesson: Lesson,
    outcome: Outcome,
    baseline: Outcome | None,
    output: Path,
    asked: Mapping[str, Any],
) -> Outcome:
    """Write what is told of a training that has finished; with what is lost beside the baseline."""
    if baseline is not None:
        outcome = outcome.beside(baseline, lesson)
    write_texts(lesson, outcome, output)
    told = {"settings": asked, "environment": describe(), **outcome.to_dict()}
    with staged_file(output / DONE) as unfinished:
        unfinished.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return outcome


def finished(output: Path, asked: Mapping[str, Any]) -> Outcome | None:
    """The outcome of a training that has finished, if it is there. Raises UsageError if it began
    otherwise than it is asked for."""
    if not (output / DONE).exists():
        return None
    check_settings(output, asked)
    return outcome_of(output / DONE)


def check_output(output: Path, folder: str, done: bool) -> None:
    """Raises UsageError if files of an output stand in `output` that no training wrote."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"output {output} is a file")
    names = [*OUTPUTS, folder]
    if (output / "baseline" / SETTINGS_FILE).exists():
        names.remove("baseline")
    there = [name for name in names if _holds(output / name)]
    if there and not done and not (output / SETTINGS_FILE).exists():
        raise UsageError(
            f"{output / there[0]} exists, and lowbit did not write it: choose another output"
        )


def _holds(path: Path) -> bool:
    """Whether anything is there: a training that was killed may have left an empty folder."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def check_lesson(lesson: Lesson, settings: Settings) -> None:
    """Raises InputError for no examples, UsageError for settings that this lesson cannot have."""
    if not lesson.examples:
        raise InputError("the data has no example to train on")
    if settings.distill and lesson.other_labels:
        raise UsageError(
            f"there is nothing to distill: the model was trained for the labels"
            f" {', '.join(lesson.other_labels)}, and the task has"
            f" {', '.join(lesson.model.config.label2id)}"
        )
    if settings.distill and lesson.new:
        raise UsageError(
            f"there is nothing to distill: {len(lesson.new)} parameters of the model are new, such"
            f" as {lesson.new[0]}; a model that was trained for the task can be distilled"
        )
    labels = lesson.examples[0].get("labels")
    if settings.label_smoothing and (labels is None or isinstance(labels, float)):
        raise UsageError(
            f"label_smoothing is {settings.label_smoothing}, but this task's labels cannot be"
            " smoothed: it must be 0"
        )


def begin(output: Path, asked: Mapping[str, Any]) -> None:
    """Note what is trained and how, in place of the checkpoints of an earlier training, which a
    later --resume could take for its own."""
    file = output / SETTINGS_FILE
    replaced = [told for told in (output / DONE, output / REPLACED) if told.is_file()]
    with staged(file.parent) as unfinished, writing(output):
        (unfinished / file.name).write_text(json.dumps(asked, indent=1), encoding="utf-8")
        if replaced:
            shutil.copyfile(replaced[0], unfinished / REPLACED.name)
    # Only now: until here another process would take what is there for a stranger's.
    (output / DONE).unlink(missing_ok=True)


def check_settings(output: Path, asked: Mapping[str, Any]) -> None:
    """Raises UsageError where the training in `output` began otherwise."""
    file = output / SETTINGS_FILE
    if file.exists():
        before = read_json(file)
    else:  # whoever deletes the checkpoints of a finished training deletes it, too
        file = output / DONE
        told = read_json(file)
        before = told.get("settings") if isinstance(told, dict) else None
    if not isinstance(before, dict):
        raise InputError(f"{file} {STRANGE}")
    for name, value in json.loads(json.dumps(asked)).items():
        if before.get(name) != value:
            raise UsageError(
                f"the training in {output} began with {name} {before.get(name)} and cannot go on"
                f" with {value}: --overwrite starts again"
            )
