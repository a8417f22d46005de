"""`lowbit import`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.choices import MEGA, SHARD_MEGABYTES
from lowbit.cli.quantize import plan_table
from lowbit.cli.screen import Screen
from lowbit.cli.tables import before_after


def import_(
    path: Annotated[Path, typer.Argument(help="A folder or file of another quantizer.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    requantize: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Quantize weights again by this recipe if lowbit cannot hold their codes (NF4).",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing model folder.")
    ] = False,
    max_shard_size: Annotated[
        int, typer.Option(min=1, help="Megabytes (10⁶ bytes) of one file. Less needs less memory.")
    ] = SHARD_MEGABYTES,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Convert a model that another program quantized. Its codes stay the same.

    Example: `lowbit import ./llama-gptq -o ./llama-lowbit`

    Example: `lowbit import ./llama-nf4 --requantize int4 -o ./llama-int4`
    """
    from lowbit.interop.taking_over import import_checkpoint

    result = import_checkpoint(
        path,
        output,
        requantize,
        overwrite=overwrite,
        max_shard_bytes=max_shard_size * MEGA,
        progress=not (quiet or as_json),
    )
    if as_json:
        print(json.dumps(result.to_dict()))
    elif not quiet:
        console = Screen()
        console.print(plan_table(result.plan))
        console.print(before_after(result.before, result.after))
        for name in result.unused:
            console.print(f"not used by the model, left out: {name}")
        for note in result.notes:
            console.print(f"note: {note}", soft_wrap=True)
        console.print(f"written to {output}; `import lowbit` before loading it")
