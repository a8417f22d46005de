"""`lowbit report`."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.options import Measured, this_command
from lowbit.cli.spread import spread
from lowbit.cli.summary import say_written


@spread
def report(
    models: Annotated[list[str], typer.Argument(help="Folders that lowbit wrote.")],
    measured: Measured,
    against: Annotated[str, typer.Option(help="The float model to compare with.")],
    output: Annotated[
        list[Path],
        typer.Option("--output", "-o", help="A .html, .md or .json file; repeatable."),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing.")] = False,
) -> None:
    """Compare models with the float model, and write one page about quality, size and speed.

    Example: `lowbit report ./gpt2-int4 --against ./gpt2 --task perplexity --data test.txt
    -o report.html`
    """
    from lowbit.evaluation.evaluate import evaluate
    from lowbit.report import check_paths, write

    check_paths(output)
    study = evaluate(
        models,
        lambda reference: measured.plan(reference.model, pictures=True),
        against,
        commands=[this_command()],
        progress=not quiet,
    )
    write(study, output)
    if not quiet:
        say_written(study, output)
