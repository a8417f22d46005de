"""GLUE: a class, or for STS-B a score, of one sentence or two; GLUE's own metrics.

Class k is the k-th label of the task. If `id2label` of the model has the task's labels, its outputs
are reordered by these names.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from lowbit.data import glue
from lowbit.data.batches import Texts, check_batch_size, check_padding, longest
from lowbit.data.glue import GlueData
from lowbit.data.glue_tasks import TASKS, GlueTask, find_task, plain_label
from lowbit.errors import InputError, UsageError
from lowbit.evaluation import scores
from lowbit.evaluation.heads import check_head
from lowbit.evaluation.study import Measurement, Metric, Sample
from lowbit.evaluation.task import TRAINED_FOR, Resampled, Subject, Task
from lowbit.nn.eval_mode import evaluating
from lowbit.progress import progress_bar

# The first metric decides; two metrics have the order of GLUE's page.
METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
SAMPLES = 5


@dataclass(frozen=True)
class Predictions:
    """The predictions of one file: a class or score per row, and the number of truncated rows."""

    values: tuple[int, ...] | tuple[float, ...]
    truncated: int


@dataclass(frozen=True)
class Glue(Task):
    """data: as `lowbit.data.glue.read` takes it; None asks the hub. subset: cola, mrpc, ….
    split: train, dev, or one of MNLI's parts. max_length: tokens of an item; by default all that
    the model has positions for."""

    name = "glue"

    data: str | None
    subset: str
    split: str = "dev"
    batch_size: int = 32
    max_length: int | None = None

    @property
    def task(self) -> GlueTask:
        """Raises UsageError."""
        return find_task(self.subset)

    @cached_property
    def parts(self) -> tuple[GlueData, ...]:
        """The files to score: two for MNLI, else one."""
        return glue.read(self.subset, self.split, self.data)

    def check(self, subject: Subject) -> None:
        self.check_model(subject)
        scores.check(METRICS[self.task.name])
        for part in self.parts:
            if part.labels is None:
                raise UsageError(f"{part.source} has no labels to score against")
            if self.task.is_regression and len(set(part.labels)) == 1:
                raise InputError(
                    f"{part.source} has {len(part.labels)} rows, all with the score"
                    f" {part.labels[0]}: a correlation needs different ones"
                )

    def check_model(self, subject: Subject) -> None:
        """Raises UsageError if the model does not support the task, even without labels."""
        task = self.task
        check_batch_size(self.batch_size)
        what = f"GLUE {task.name}"
        check_head(
            subject.model,
            MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
            what,
            "sequence-classification",
        )
        outputs, needed = subject.model.config.num_labels, max(1, len(task.labels))
        if outputs != needed:
            raise UsageError(f"{what} needs a model of {needed} labels, not of {outputs}")
        _check_labels(subject.model, task)
        tokenizer = subject.needed_tokenizer()
        check_padding(tokenizer, self.batch_size)
        if self.batch_size > 1 and subject.model.config.get_text_config().pad_token_id is None:
            # Decoders classify the last token, which they find by the padding after it.
            raise UsageError(
                f"batch_size must be 1, not {self.batch_size}, because the model's config has no"
                " pad_token_id"
            )
        longest(subject.model, tokenizer, self.max_length)

    def measure(self, subject: Subject, progress: bool = True) -> Measurement:
        self.check(subject)
        task = self.task
        metrics: dict[str, Metric] = {}
        predictions: list[int | float] = []
        truncated = 0
        for part in self.parts:
            assert part.labels is not None
            found = self.predict(subject, part, progress)
            suffix = part.part.removeprefix(self.split)
            for name in METRICS[task.name]:
                metrics[name + suffix] = scores.metric(name, found.values, part.labels)
            predictions += found.values
            truncated += found.truncated
        return Measurement(
            task=f"glue {task.name}",
            data=", ".join(part.source for part in self.parts),
            items=len(predictions),
            unit="sentence pairs" if len(task.texts) == 2 else "sentences",
            settings={
                "split": self.split,
                "max_length": self._most(subject),
                "truncated": truncated,
                "rows_cut_in_file": sum(part.cut_rows for part in self.parts),
                "label_order": "the model's names" if _is_named(subject.model, task) else "GLUE's",
            },
            metrics=metrics,
            samples=_samples(self.parts[0], predictions[:SAMPLES]),
            predictions=tuple(predictions),
        )

    def resampled(self, found: Measurement) -> Resampled:
        """The metric of the first file, which is the deciding one, for resampled items."""
        labels = np.array(self.parts[0].labels)
        values = np.array(found.predictions[: len(labels)])
        name = METRICS[self.task.name][0]

        def score(rows: Int64[np.ndarray, " items"]) -> float:
            rows = rows[rows < len(labels)]
            return scores.drawn(name, values[rows], labels[rows])

        return score

    def predict(self, subject: Subject, part: GlueData, progress: bool = True) -> Predictions:
        """Classes in the task's order, or raw scores; labels are not needed.

        Raises InputError where the model's output is not finite.
        """
        tokenizer, model = subject.needed_tokenizer(), subject.model
        texts = Texts(part.sentences, tokenizer, self._most(subject))
        values: list[int | float] = [0] * len(part.sentences)
        order = _order(model, part.task)
        what = f"glue {part.task.name}"
        with evaluating(model), progress_bar(len(values), what, "item", progress) as bar:
            for batch, inputs in texts.batches(self.batch_size):
                logits = model(**inputs.to(model.device)).logits.float().cpu()
                if not torch.isfinite(logits).all():
                    raise InputError(
                        f"{subject.name} computes logits on {part.source} that are not finite"
                    )
                found = logits[:, 0] if part.task.is_regression else logits[:, order].argmax(-1)
                for index, value in zip(batch, found.tolist(), strict=True):
                    values[index] = value
                bar.update(len(batch))
        return Predictions(tuple(values), texts.truncated)

    def _most(self, subject: Subject) -> int | None:
        return longest(subject.model, subject.tokenizer, self.max_length)


def _is_named(model: PreTrainedModel, task: GlueTask) -> bool:
    """Whether the model's class names are those of the task."""
    named = {plain_label(name) for name in model.config.id2label.values()}
    return named == set(task.labels) or (bool(task.written) and named == set(task.written))


def _check_labels(model: PreTrainedModel, task: GlueTask) -> None:
    """Raises UsageError if the model was trained for another task, by its config or by its class
    names."""
    trained = getattr(model.config, TRAINED_FOR, None) or {}
    other = TASKS.get(trained.get("name", "")) if trained.get("task") == "glue" else None
    if other is None and not _is_named(model, task):
        other = next((each for each in TASKS.values() if _has_labels(model, each)), None)
    if other is not None and other is not task:
        raise UsageError(
            f"the model was trained for GLUE {other.name}, whose labels are"
            f" {', '.join(other.labels) or 'scores'}, not for {task.name}: give --name {other.name}"
        )


def _has_labels(model: PreTrainedModel, task: GlueTask) -> bool:
    """Whether the model's class names are words, and those of the task."""
    return bool(task.labels) and set(task.labels) == {
        plain_label(name) for name in model.config.id2label.values()
    }


def _order(model: PreTrainedModel, task: GlueTask) -> list[int]:
    """The model's output index for class 0, 1, … of the task."""
    if task.is_regression or not _is_named(model, task):
        return list(range(len(task.labels)))
    place = {plain_label(name): index for index, name in model.config.id2label.items()}
    return [
        place[name if name in place else written]
        for name, written in zip(task.labels, task.written or task.labels, strict=True)
    ]


def _samples(part: GlueData, predictions: list[int | float]) -> tuple[Sample, ...]:
    assert part.labels is not None

    def shown(value: int | float) -> str:
        return part.task.labels[int(value)] if part.task.labels else f"{value:.3g}"

    return tuple(
        Sample(" ‖ ".join(texts), shown(found), shown(label))
        for texts, found, label in zip(part.sentences, predictions, part.labels, strict=False)
    )
