"""`lowbit eval`."""

import json
from typing import Annotated

import typer

from lowbit.cli.options import AsJson, Measured, this_command
from lowbit.cli.screen import Screen
from lowbit.cli.spread import spread
from lowbit.cli.study_tables import study_tables, written


@spread
def eval(
    models: Annotated[list[str], typer.Argument(help="Folders with models, float or quantized.")],
    measured: Measured,
    against: Annotated[
        str | None, typer.Option(help="The model to compare with, usually the float model.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Score models on a task, and print sizes and (with --shapes) speed.

    Example: `lowbit eval ./gpt2-int4 --task perplexity --data test.txt --against ./gpt2`
    """
    from lowbit.evaluation.evaluate import evaluate

    study = evaluate(
        models,
        measured.plan(),
        against,
        commands=[this_command()],
        progress=not (quiet or as_json),
    )
    if as_json:
        print(json.dumps(study.to_dict()))
        return
    console = Screen()
    for table in study_tables(study):
        console.print(table)
    for line in written(study):
        console.print(line, soft_wrap=True)
    for record in study.models:
        for kernel in record.kernels:
            console.print(f"{record.name}: {kernel}", soft_wrap=True)
