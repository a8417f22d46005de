"""`lowbit export`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.choices import FORMATS
from lowbit.cli.options import AsJson, Quiet
from lowbit.cli.screen import say
from lowbit.cli.tables import mebibytes


def export(
    model: Annotated[
        Path,
        typer.Argument(help="A folder that lowbit wrote; for gguf also a float model."),
    ],
    to: Annotated[
        str, typer.Option(metavar="NAME[:TYPE]", help=f"The format: {', '.join(FORMATS)}.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder or file to write.")],
    layout: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The layout of the folder, if there are several."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file or model folder.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a quantized model as another program reads it, with the same codes.

    Example: `lowbit export ./llama-int4 --to compressed-tensors -o ./llama-vllm`
    """
    from lowbit.interop.export_checkpoint import export_checkpoint

    exported = export_checkpoint(model, to, output, overwrite, layout, progress=not quiet)
    if as_json:
        print(json.dumps(asdict(exported)))
    elif not quiet:
        say(*(f"note: {note}" for note in exported.notes))
        held = f"{exported.weights:,} quantized weights" if exported.weights else "a float model"
        say(f"{held}, {mebibytes(exported.bytes)}, written to {output} as {exported.to}")
