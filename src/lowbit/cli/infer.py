"""`lowbit infer`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from lowbit.data import glue, squad_windows
from lowbit.errors import UsageError
from lowbit.evaluation.evaluate import load_subject
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.glue import Glue
from lowbit.evaluation.tasks.squad import Squad
from lowbit.staging import staged_file


def infer(
    model: Annotated[str, typer.Argument(help="A folder with a model, float or integer.")],
    task: Annotated[str, typer.Option(help="glue or squad.")],
    data: Annotated[str, typer.Option("--data", "--data-dir", help="The task's files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    subset: Annotated[str, typer.Option("--name", help="The GLUE task: cola, mrpc, …")] = "",
    split: Annotated[str, typer.Option(help="test, dev or train; labels are not needed.")] = "test",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing.")] = False,
) -> None:
    """Predict, in the form that GLUE (index and prediction) and SQuAD (JSON) take.

    Example: `lowbit infer ./out/int8 --task glue --name mrpc --data-dir ./MRPC -o MRPC.tsv`
    """
    if task not in PREDICTORS:
        raise UsageError(f"there is no task {task!r} to predict; there are {', '.join(PREDICTORS)}")
    lines = list(PREDICTORS[task](load_subject(model), data, subset, split, not quiet))
    with staged_file(output) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not quiet:
        print(f"written: {output}")


def _glue(subject: Subject, data: str, subset: str, split: str, progress: bool) -> Iterator[str]:
    task = Glue(data, subset, split)
    task.check_model(subject)
    yield "index\tprediction"
    for part in glue.read(subset, split, data):
        labels = part.task.labels
        for row, value in enumerate(task.predict(subject, part, progress).values):
            yield f"{row}\t{labels[int(value)] if labels else f'{value:.3f}'}"


def _squad(subject: Subject, data: str, subset: str, split: str, progress: bool) -> Iterator[str]:
    task = Squad(data, split)
    task.check(subject)
    questions = task.items.questions
    windows = squad_windows.split(
        subject.needed_tokenizer(), questions, task.max_length, task.stride
    )
    answers = task.answers(subject, questions, windows, progress)
    told = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    yield json.dumps(told, ensure_ascii=False)


PREDICTORS: dict[str, Callable[..., Iterator[str]]] = {"glue": _glue, "squad": _squad}
