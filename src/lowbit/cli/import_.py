"""`lowbit import`."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.choices import MEGA, SHARD_MEGABYTES
from lowbit.cli.options import AsJson, Overwrite, Quiet, ShardSize
from lowbit.cli.quantize import show


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
    overwrite: Overwrite = False,
    max_shard_size: ShardSize = SHARD_MEGABYTES,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Convert a model that another program quantized. Its codes stay the same.

    Example: `lowbit import ./llama-gptq -o ./llama-lowbit`

    Example: `lowbit import ./llama-nf4 --requantize int4 -o ./llama-int4`
    """
    from lowbit.interop.import_checkpoint import import_checkpoint

    result = import_checkpoint(
        path,
        output,
        requantize,
        overwrite=overwrite,
        max_shard_bytes=max_shard_size * MEGA,
        progress=not (quiet or as_json),
    )
    show(result, output, as_json, quiet)
