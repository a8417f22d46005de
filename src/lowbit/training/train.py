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
import math
import shutil
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerControl, TrainingArguments, set_seed

from lowbit.environment import describe
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.study import Measurement
from lowbit.evaluation.task import Subject, agreement
from lowbit.mode import evaluating
from lowbit.progress import without_transformers_bars
from lowbit.qat.prepare import fake_quantized, finish_qat, prepare_qat
from lowbit.qat.projection import CodedWeight, prepare_codes
from lowbit.staging import staged, staged_file, writing
from lowbit.training.distillation import divergence
from lowbit.training.lesson import Example, Lesson, Material
from lowbit.training.projections import Projections
from lowbit.training.settings import Settings
from lowbit.training.teachers import find_teacher


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
            "measurements": {
                name: {**asdict(m), "predictions": list(m.predictions)}
                for name, m in self.measurements.items()
            },
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
    recipe = settings.recipe
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
    teacher = deepcopy(lesson.model) if settings.distill else None
    weights: tuple[CodedWeight, ...] = ()
    if settings.plan is not None:
        weights = prepare_codes(lesson.model, settings.plan.recipe)
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
        trainer.train(resume_from_checkpoint=str(begun[-1]) if resume and begun else None)
    finally:
        torch.set_flush_denormal(False)
    seconds = time.perf_counter() - start
    if not trainer.is_world_process_zero():
        return Outcome(trainer.state.global_step, seconds, {}, ())
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


def checkpoints(output: Path) -> list[Path]:
    """Trainer's, the oldest first; only those that were written to their end."""
    found = [
        folder
        for folder in (output / "checkpoints").glob("checkpoint-*")
        if (folder / "trainer_state.json").is_file()
    ]
    return sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))


def _last_good(output: Path) -> str:
    kept = checkpoints(output)
    return f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was saved yet"


def arguments(
    output: Path, settings: Settings, best: str | None, progress: bool
) -> TrainingArguments:
    """best: the metric of the checkpoint that is kept, if it is not the last."""

    def every(steps: int) -> str:
        return "steps" if steps else "epoch"

    keeps_best = best is not None and settings.evaluate_during_training
    save_steps = settings.eval_steps if keeps_best else settings.save_steps
    return TrainingArguments(
        output_dir=str(output / "checkpoints"),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        warmup_steps=settings.warmup,
        lr_scheduler_type=settings.schedule,
        label_smoothing_factor=settings.label_smoothing,
        weight_decay=settings.weight_decay,
        eval_strategy=every(settings.eval_steps) if settings.evaluate_during_training else "no",
        eval_steps=settings.eval_steps or None,
        save_strategy=every(save_steps),
        save_steps=save_steps or 500,
        save_total_limit=2,
        load_best_model_at_end=keeps_best,
        metric_for_best_model=best if keeps_best else None,
        greater_is_better=True if keeps_best else None,
        logging_steps=10,
        logging_nan_inf_filter=False,
        disable_tqdm=not progress,
        report_to=[],
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        train_sampling_strategy="group_by_length",
        dataloader_pin_memory=False,
    )


class Rows(Dataset[Example]):
    """Examples, as torch and Trainer want them."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        row: Example = self.examples[index]
        return row


class LessonTrainer(Trainer):
    """Trainer that scores with the lesson's task, and stops where the loss is no number.

    teacher: a model of which `distill`, a share of the loss, is how far the trained one is away.
    """

    def __init__(
        self,
        lesson: Lesson,
        args: TrainingArguments,
        teacher: PreTrainedModel | None = None,
        distill: float = 0.0,
    ) -> None:
        self.lesson, self.teacher, self.distill = lesson, teacher, distill
        super().__init__(
            model=lesson.model,
            args=args,
            data_collator=lesson.collate,
            train_dataset=Rows(lesson.examples),
            eval_dataset=Rows(()),  # the task reads its own
            processing_class=lesson.tokenizer,
        )

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(model, *args, **kwargs)
        if not math.isfinite(loss.item()):
            raise InputError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: a smaller"
                f" learning rate than {self.args.learning_rate} may help;"
                f" {_last_good(Path(self.args.output_dir).parent)}"
            )
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        output = Path(self.args.output_dir).parent
        try:
            with writing(output):
                super()._save_checkpoint(*args, **kwargs)
        except InputError as error:
            raise InputError(f"{error}; {_last_good(output)}") from error

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.teacher is not None:
            if labels is None or "logits" not in outputs:
                raise UsageError("this task has no labels whose tokens could be distilled")
            given = {name: value for name, value in inputs.items() if name != "labels"}
            with evaluating(self.teacher):
                wanted = self.teacher.to(labels.device)(**given).logits
            loss = torch.lerp(loss, divergence(outputs["logits"], wanted, labels), self.distill)
        return (loss, outputs) if return_outputs else loss

    def score_before(self) -> None:
        """The scores of the model as it is now, into the log."""
        self.log({f"before_projection_{k[5:]}": v for k, v in self._scores().items()})

    def _scores(self) -> dict[str, float]:
        subject = Subject("model", self.lesson.model, self.lesson.tokenizer)
        found = self.lesson.score.measure(subject, progress=False)
        return {f"eval_{name}": metric.value for name, metric in found.metrics.items()}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = self._scores()
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control: TrainerControl = control
        return metrics
