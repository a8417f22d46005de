"""`lowbit infer`."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit.checkpoint.atomic_write import check_file, staged_file
from lowbit.checkpoint.work_folder import claimed
from lowbit.cli.screen import say
from lowbit.errors import UsageError
from lowbit.evaluation.evaluate import load_subject
from lowbit.evaluation.predict import predict


def infer(
    model: Annotated[str, typer.Argument(help="A folder with a model, float or integer.")],
    task: Annotated[str, typer.Option(help="The task: glue or squad.")],
    data: Annotated[str, typer.Option("--data", "--data-dir", help="The task's files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    subset: Annotated[
        str, typer.Option("--name", help="The GLUE task: cola, mrpc, …", show_default="the model's")
    ] = "",
    split: Annotated[
        str | None,
        typer.Option(
            help="test, dev or train. No labels needed.", show_default="test; dev for squad"
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an input; as in training.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens that two windows of SQuAD share.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing.")] = False,
) -> None:
    """Write predictions in the form of GLUE (index and prediction) or SQuAD (JSON).

    Example: `lowbit infer ./out/int8 --task glue --name mrpc --data-dir ./MRPC -o MRPC.tsv`
    """
    check_file(output)
    given = {"max_length": max_length, "stride": stride}
    lengths = {name: value for name, value in given.items() if value is not None}
    if task != "squad" and stride is not None:
        raise UsageError("--stride is of squad's windows: other tasks have none")
    with claimed(output):
        lines = list(predict(task, load_subject(model), data, subset, split, not quiet, **lengths))
        with staged_file(output) as unfinished:
            unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not quiet:
        say(f"written: {output}")
