"""GLUE: a sequence classifier, or for STS-B a regression, over one sentence or two."""

from transformers import AutoModelForSequenceClassification

from lowbit.data import glue
from lowbit.data.batches import columns
from lowbit.data.glue_tasks import find_task
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.tasks.glue import Glue
from lowbit.training.lesson import (
    Example,
    Lesson,
    Material,
    check_folder,
    load_with_head,
    padded,
)


def teach(material: Material) -> Lesson:
    """Raises UsageError without a GLUE task, InputError for unusable data."""
    if material.subset is None:
        raise UsageError("task glue needs the name of one of its tasks: cola, mrpc, …")
    task = find_task(material.subset)
    if material.data is not None:
        check_folder(material.data, "train.tsv and dev.tsv")
    (part,) = glue.read(task.name, "train", material.data)
    if part.labels is None:
        raise InputError(f"{part.source} has no labels to learn")
    if len(set(part.labels)) == 1:
        only = part.labels[0]
        raise InputError(
            f"{part.source} has {len(part.labels)} rows and one label,"
            f" {task.labels[int(only)] if task.labels else only}: there is nothing to learn"
        )
    names = list(task.labels) or ["score"]
    loaded = load_with_head(
        AutoModelForSequenceClassification,
        material,
        names,
        problem_type="regression" if task.is_regression else "single_label_classification",
        trained_for={"task": "glue", "name": task.name},
    )
    encoded = material.tokenizer(
        *columns(part.sentences), truncation=True, max_length=material.max_length, verbose=False
    )
    numbers = loaded.model.config.label2id

    def target(label: float) -> float:
        return label if task.is_regression else numbers[task.labels[int(label)]]

    examples: list[Example] = [
        {**{key: values[row] for key, values in encoded.items()}, "labels": target(label)}
        for row, label in enumerate(part.labels)
    ]
    return Lesson(
        loaded.model,
        material.tokenizer,
        examples,
        padded(material.tokenizer),
        Glue(material.data, task.name, "dev", max_length=material.max_length),
        new=loaded.new,
        other_labels=loaded.other_labels,
        accuracy=not task.is_regression,
    )
