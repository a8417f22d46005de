"""transformers' Trainer on a lesson: its arguments, its checkpoints, and what stops it."""

import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerControl,
    TrainingArguments,
)

from lowbit.calibration.observers import Learned
from lowbit.checkpoint.atomic_write import writing
from lowbit.checkpoint.read import weight_files
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.task import Subject
from lowbit.evaluation.teacher_forcing import IGNORED
from lowbit.fallbacks import unwarned
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import hidden, without_transformers_bars
from lowbit.qat.prepare import fake_quantized
from lowbit.training import bfloat16
from lowbit.training.attention import trainable_attention
from lowbit.training.by_length import ByLength
from lowbit.training.distillation import divergence
from lowbit.training.lesson import Example, Lesson
from lowbit.training.settings import Settings
from lowbit.training.smoothed_labels import SmoothedLabels


def checkpoints(output: Path) -> list[Path]:
    """Trainer's, the oldest first; only those that were written to their end and are whole."""
    found = {
        int(step): folder
        for folder in (output / "checkpoints").glob("checkpoint-*")
        if (step := folder.name.removeprefix("checkpoint-")).isdecimal() and _is_whole(folder)
    }
    return [found[step] for step in sorted(found)]


def _is_whole(checkpoint: Path) -> bool:
    """Whether a training can go on from it: the state of Trainer, which it writes last, and all
    else that would else begin anew without a word or fail. A file that was cut is not whole."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for file in weight_files(checkpoint):
            with safe_open(file, "pt"):
                pass
    except (OSError, ValueError, SafetensorError, InputError):
        return False
    random = [*checkpoint.glob("rng_state*.pth")]  # of each process
    rest = *random, checkpoint / "optimizer.pt", checkpoint / "scheduler.pt"
    return (
        isinstance(state, dict)
        and "global_step" in state
        and bool(random)
        and all(map(zipfile.is_zipfile, rest))
    )


def last_good(output: Path) -> str:
    kept = checkpoints(output)
    return f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was saved yet"


def arguments(
    output: Path, settings: Settings, best: str | None, progress: bool
) -> TrainingArguments:
    """best: the metric of the checkpoint that is kept, if it is not the last."""

    def every(steps: int) -> str:
        return "steps" if steps else "epoch"

    keeps_best = best is not None and settings.evaluate_during_training
    if keeps_best and settings.save_steps not in (0, settings.eval_steps):
        raise UsageError(
            f"save_steps is {settings.save_steps}, but this task keeps the best checkpoint, and so"
            " saves one at each evaluation: give eval_steps instead"
        )
    save_steps = settings.eval_steps if keeps_best else settings.save_steps
    given = TrainingArguments(
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
        disable_tqdm=hidden(progress),
        report_to=[],
        seed=settings.seed,
        bf16=bfloat16.is_used(settings.bf16),
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # Of several GPUs one process takes one: torchrun starts more processes. Trainer would copy the
    # model to all, and copies of a tied layer would compute with the quantizer of the first.
    given._n_gpu = min(given.n_gpu, 1)
    return given


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """The model computes in its own dtype, whatever accelerate put around `forward` to train it."""
    wrapped = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            vars(model)["forward"] = wrapped


class Rows(Dataset[Example]):
    """Examples, as torch and Trainer want them."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        row: Example = self.examples[index]
        return row


def freeze_what_is_not_saved(model: PreTrainedModel) -> None:
    """Fixed parameters, such as sinusoids, are left out of checkpoints and made anew on loading.

    transformers 5.24 then forgets that they are fixed. What was learned in them would be lost.
    """
    left_out = set(model._keys_to_ignore_on_save or ())
    for name, parameter in model.named_parameters():
        if name in left_out:
            parameter.requires_grad_(False)


class LessonTrainer(Trainer):
    """Trainer that scores with the lesson's task, and stops if a loss or a weight is not finite.

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
        self.right = self.counted = 0  # labels since the last evaluation
        freeze_what_is_not_saved(lesson.model)
        self.learned_scales = [m.scale for m in lesson.model.modules() if isinstance(m, Learned)]
        super().__init__(
            model=lesson.model,
            args=args,
            data_collator=lesson.collate,
            train_dataset=Rows(lesson.examples),
            eval_dataset=Rows(()),  # the task reads its own
            processing_class=lesson.tokenizer,
        )
        if args.label_smoothing_factor:
            self.label_smoother = SmoothedLabels(args.label_smoothing_factor)
        # It prints its log where bars are not shown: standard output is the caller's.
        self.remove_callback(PrinterCallback)
        # Else Trainer takes it that models divide the loss by the items of all batches of a step,
        # which classifiers do not: their gradients would be as many times too large.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> ByLength:
        at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps
        lengths = [len(example["input_ids"]) for example in self.lesson.examples]
        self.order = ByLength(lengths, at_once, self.args.seed)
        return self.order

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """A checkpoint names the best one by its path when it was saved. The folder may have moved
        since, or another one may be there."""
        found = super()._init_training_state(*args, **kwargs)
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)
        return found

    def _run_epoch(self, **kwargs: Any) -> None:
        """One epoch; nothing where a checkpoint holds the last step, inside an epoch, already."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        self.order.epoch = kwargs["epoch"]
        super()._run_epoch(**kwargs)

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if self.args.world_size > 1:
            # Each process sets them by its own first batch, and only gradients are averaged.
            for scale in self.learned_scales:
                torch.distributed.broadcast(scale.data, 0)
        step = self.state.global_step + 1
        with trainable_attention(self.lesson.model, self.args.bf16), self.naming_step(step):
            loss: Tensor = super().training_step(model, *args, **kwargs)
        if not math.isfinite(loss.item()):
            raise self._diverged(f"the loss is {loss.item()}", step)
        return loss

    def check_weights(self) -> None:
        """Raises InputError for a weight that is not finite: a step made it so, and its loss was
        found before."""
        for name, parameter in self.lesson.model.named_parameters():
            if not parameter.isfinite().all():
                raise self._diverged(f"{name} is not finite", self.state.global_step)

    @contextmanager
    def naming_step(self, step: int | None = None) -> Iterator[None]:
        """A context that adds the number of the step, by default the last one, to an InputError:
        the weights have become such that nothing can be computed with them."""
        try:
            yield
        except InputError as error:
            at = self.state.global_step if step is None else step
            raise self._diverged(str(error), at) from error

    def _diverged(self, what: str, step: int) -> InputError:
        return InputError(
            f"{what} at step {step}: a smaller learning rate than {self.args.learning_rate} may"
            f" help; {last_good(Path(self.args.output_dir).parent)}"
        )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_weights()
        output = Path(self.args.output_dir).parent
        try:
            with writing(output), without_transformers_bars():
                super()._save_checkpoint(*args, **kwargs)
        except InputError as error:
            raise InputError(f"{error}; {last_good(output)}") from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Weights that are tied, or made anew on loading, are in no checkpoint: none is missing."""
        model = self.lesson.model
        left_out = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
        missing = [name for name in load_result.missing_keys if name not in left_out]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        # Trainer takes labels out of the inputs where it smooths them.
        labels = inputs.get("labels")
        all_targets = self.lesson.targets
        targets = {logits: inputs[name] for name, logits in all_targets.items() if name in inputs}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.lesson.accuracy and labels is not None:
            counts = labels != IGNORED
            # On a CPU, argmax takes several times as long as amax.
            logits = outputs["logits"].detach()
            own = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            self.right += int((own == logits.amax(-1))[counts].sum())
            self.counted += int(counts.sum())
        if self.teacher is not None:
            if len(targets) < len(all_targets) or not targets.keys() <= outputs.keys():
                raise UsageError("this task has no logits that could be distilled")
            given = {k: value for k, value in inputs.items() if k not in all_targets}
            with evaluating(self.teacher), self.accelerator.autocast():
                wanted = self.teacher.to(loss.device)(**given)
            far = [divergence(outputs[k], wanted[k], target) for k, target in targets.items()]
            loss = torch.lerp(loss, torch.stack(far).mean(), self.distill)
        return (loss, outputs) if return_outputs else loss

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of equal scores the one with the lower loss is the better. No score from before rounding
        starts is: it is that of the float model."""
        if self._rounds_later():
            return False
        before, loss = self.state.best_metric, metrics.get("eval_loss", math.inf)
        better: bool = super()._determine_best_metric(metrics, trial)
        best = self.args.metric_for_best_model
        if not better and best is not None and metrics[f"eval_{best}"] == before:
            better = loss < self._loss_of_best()
            if better:
                self.state.best_global_step = self.state.global_step
        return better

    def _rounds_later(self) -> bool:
        """Whether a layer is still to be rounded. A layer that never runs is not waited for."""
        layers = [layer for layer in fake_quantized(self.lesson.model).values() if layer.start]
        passes = [(int(layer.steps), layer.start) for layer in layers if layer.steps]
        return bool(layers) and (not passes or any(steps <= start for steps, start in passes))

    def _loss_of_best(self) -> float:
        """The loss at the step of the best score, as the log has it."""
        for entry in reversed(self.state.log_history):
            if entry["step"] == self.state.best_global_step and "eval_loss" in entry:
                return float(entry["eval_loss"])
        return -math.inf

    def score_before(self) -> None:
        """The scores of the model as it is now, into the log."""
        self.log({f"before_projection_{k[5:]}": v for k, v in self._scores().items()})

    def _scores(self) -> dict[str, float]:
        model = self.lesson.model
        subject = Subject("model", model, self.lesson.tokenizer)
        # Fake quantization has no fast path, so a warning would ask for nothing.
        quiet = unwarned() if fake_quantized(model) else nullcontext()
        with without_autocast(model), quiet:
            found = self.lesson.score.measure(subject, progress=False)
        return {f"eval_{name}": metric.value for name, metric in found.metrics.items()}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.check_weights()
        with self.naming_step():
            metrics = self._scores()
        if self.counted:
            metrics["train_accuracy"] = self.right / self.counted
            self.right = self.counted = 0
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control: TrainerControl = control
        return metrics
