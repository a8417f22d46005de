"""`lowbit eval`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from lowbit.cli.options import Measured, measuring, this_command
from lowbit.cli.study_tables import metric_table, size_table, timing_table
from lowbit.evaluation.evaluate import evaluate


@measuring
def eval(
    models: Annotated[list[str], typer.Argument(help="Folders with models, float or quantized.")],
    measured: Measured,
    against: Annotated[
        str | None, typer.Option(help="The model to compare with: the float one, as a rule.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Score models on a task, with their sizes and, on request, their speed.

    Example: `lowbit eval ./gpt2-int4 --task perplexity --data test.txt --against ./gpt2`
    """
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
    console = Console()
    for table in (metric_table(study), size_table(study), timing_table(study)):
        if table is not None:
            console.print(table)
    for record in study.models:
        for kernel in record.kernels:
            console.print(f"{record.name}: {kernel}", soft_wrap=True, highlight=False)
