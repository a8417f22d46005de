"""`lowbit simulate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lowbit.checkpoint.atomic_write import check_output, staged, writing
from lowbit.cli.choices import ROUNDINGS
from lowbit.cli.options import Overwrite, Quiet
from lowbit.cli.screen import say


def simulate(
    model: Annotated[str, typer.Argument(help="A folder with a float model, or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    scheme: Annotated[
        str,
        typer.Option(help=f"How each parameter is rounded: {', '.join(ROUNDINGS)}."),
    ] = "absmax",
    overwrite: Overwrite = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the mean squared error of each parameter.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Round every parameter as a scheme would, and save the result as a float model.

    Size and speed stay those of the float model. What changes is what the model computes.

    Example: `lowbit simulate ./gpt2 --scheme zero-point -o ./gpt2-rounded`
    """
    from lowbit.checkpoint.companions import copy_companions
    from lowbit.checkpoint.load import load_model
    from lowbit.checkpoint.read import find
    from lowbit.conversion.simulate import simulate as simulate_model
    from lowbit.progress import without_transformers_bars
    from lowbit.schemes.named import NAMED

    source = find(model)
    check_output(output, overwrite, source)
    loaded = load_model(source)
    errors = simulate_model(loaded, NAMED.get(scheme, scheme))
    with staged(output) as folder, writing(output), without_transformers_bars():
        loaded.save_pretrained(folder)
        copy_companions(source, folder)
    if as_json:
        print(json.dumps(errors))
    elif not quiet:
        worst = max(errors, key=lambda name: errors[name])
        say(
            f"{len(errors)} parameters rounded; the largest mean squared error is"
            f" {errors[worst]:.3g}, of {worst}",
            f"written to {output}, a float model",
        )
