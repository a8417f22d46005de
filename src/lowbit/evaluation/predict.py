"""Write predictions in the format of the benchmarks, from data without labels."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from lowbit.data import glue, squad_windows
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.task import TRAINED_FOR, Subject
from lowbit.evaluation.tasks.glue import Glue
from lowbit.evaluation.tasks.squad import Squad


def predict(
    task: str,
    subject: Subject,
    data: str,
    split: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Iterator[str]:
    """The lines of a file of predictions: GLUE's index and label, SQuAD's JSON by question.

    task: of PREDICTORS. split: by default test for GLUE, and dev for SQuAD, whose test set is not
    public. options: `max_length`, by default the task's own; for GLUE `name`, its task, by default
    the one in the model's config; for SQuAD `stride`, tokens that two windows share.

    Raises UsageError if the task does not fit the model, InputError for unusable data.
    """
    predictor, usual_split = PREDICTORS[task]
    return predictor(subject, data, split or usual_split, progress, **options)


def _glue(
    subject: Subject,
    data: str,
    split: str,
    progress: bool,
    name: str = "",
    max_length: int | None = None,
) -> Iterator[str]:
    trained = getattr(subject.model.config, TRAINED_FOR, None) or {}
    name = name or trained.get("name", "")
    if not name:
        raise UsageError("give the name of the GLUE task (--name): the model does not say which")
    task = Glue(data, name, split, max_length=max_length)
    task.check_model(subject)
    yield "index\tprediction"
    part, *more = glue.read(name, split, data)
    if more:
        names = " or ".join(each.part for each in (part, *more))
        raise UsageError(
            f"GLUE {name} has {1 + len(more)} files of the split {split}, each with predictions"
            f" of its own: give the split {names}"
        )
    if part.cut_rows:
        raise InputError(
            f"{part.source} has {part.cut_rows} incomplete rows: repair or remove them, because"
            " predictions are numbered by row"
        )
    labels = part.task.labels
    for row, value in enumerate(task.predict(subject, part, progress).values):
        yield f"{row}\t{labels[int(value)] if labels else f'{value:.3f}'}"


def _squad(
    subject: Subject, data: str, split: str, progress: bool, **lengths: int
) -> Iterator[str]:
    task = Squad(data, split, **lengths)
    task.check_model(subject)
    questions = task.items.questions
    windows = squad_windows.split(
        subject.needed_tokenizer(), questions, task.max_length, task.overlap
    )
    answers = task.answers(subject, questions, windows, progress)
    told = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    yield json.dumps(told, ensure_ascii=False)


# The tasks, with their default splits.
PREDICTORS: dict[str, tuple[Callable[..., Iterator[str]], str]] = {
    "glue": (_glue, "test"),
    "squad": (_squad, "dev"),
}
