"""Write predictions in the format of the benchmarks, from data without labels."""

import json
from collections.abc import Callable, Iterator

from lowbit.data import glue, squad_windows
from lowbit.errors import InputError, UsageError
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.glue import TRAINED_FOR, Glue
from lowbit.evaluation.tasks.squad import Squad


def predict(
    task: str,
    subject: Subject,
    data: str,
    subset: str,
    split: str | None = None,
    progress: bool = True,
    **lengths: int,
) -> Iterator[str]:
    """The lines of a file of predictions: GLUE's index and label, SQuAD's JSON by question.

    subset: GLUE's task, by default the one in the model's config. split: by default test for GLUE,
    and dev for SQuAD, whose test set is not public. lengths: `max_length`, and for SQuAD's windows
    `stride`; by default the task's own.

    Raises UsageError if the task is another or does not fit the model, InputError for unusable
    data.
    """
    if task not in PREDICTORS:
        raise UsageError(f"there is no task {task!r} to predict; there are {', '.join(PREDICTORS)}")
    predictor, usual_split = PREDICTORS[task]
    return predictor(subject, data, subset, split or usual_split, progress, **lengths)


def _glue(
    subject: Subject,
    data: str,
    subset: str,
    split: str,
    progress: bool,
    max_length: int | None = None,
) -> Iterator[str]:
    trained = getattr(subject.model.config, TRAINED_FOR, None) or {}
    subset = subset or trained.get("name", "")
    if not subset:
        raise UsageError("give the name of the GLUE task (--name): the model does not say which")
    task = Glue(data, subset, split, max_length=max_length)
    task.check_model(subject)
    yield "index\tprediction"
    part, *more = glue.read(subset, split, data)
    if more:
        names = " or ".join(each.part for each in (part, *more))
        raise UsageError(
            f"GLUE {subset} has {1 + len(more)} files of the split {split}, each with predictions"
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
    subject: Subject, data: str, subset: str, split: str, progress: bool, **lengths: int
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
