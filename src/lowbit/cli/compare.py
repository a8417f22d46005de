"""`lowbit compare`."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.options import Measured, this_command
from lowbit.cli.screen import say
from lowbit.cli.spread import spread
from lowbit.cli.summary import say_written

RECIPES = "int8,int8-dynamic,int4,int4-all,int3,bcq3,bcq2"


@spread
def compare(
    model: Annotated[str, typer.Argument(help="A folder with a float model, or a hub id.")],
    measured: Measured,
    output: Annotated[
        list[Path],
        typer.Option("--output", "-o", help="A .html, .md or .json file; repeatable."),
    ],
    recipes: Annotated[str, typer.Option(help="Presets or .yaml files, with commas.")] = RECIPES,
    models: Annotated[
        Path | None,
        typer.Option(help="The folder for quantized models.", show_default="beside the output"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing.")] = False,
) -> None:
    """Quantize a model with several recipes, measure them all, and write one page.

    After an interruption the same command continues where it stopped.

    Example: `lowbit compare ./gpt2 --recipes int8,int4,bcq3 --task perplexity --data test.txt
    -o report.html`
    """
    from lowbit.evaluation.compare import compare as compare_recipes
    from lowbit.report import check_paths, write

    check_paths(output)
    folder = models or output[0].with_suffix(".models")
    study = compare_recipes(
        model,
        [recipe.strip() for recipe in recipes.split(",")],
        lambda reference: measured.plan(reference.model, pictures=True),
        folder,
        commands=[this_command()],
        progress=not quiet,
    )
    write(study, output)
    if not quiet:
        say_written(study, output)
        say(f"the models stay in {folder}")
