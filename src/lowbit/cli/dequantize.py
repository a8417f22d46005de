"""`lowbit dequantize`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.choices import MEGA, SHARD_MEGABYTES
from lowbit.cli.options import AsJson, Overwrite, Quiet, ShardSize
from lowbit.cli.screen import say
from lowbit.cli.tables import mebibytes


def dequantize(
    model: Annotated[Path, typer.Argument(help="A folder that lowbit wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    overwrite: Overwrite = False,
    max_shard_size: ShardSize = SHARD_MEGABYTES,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the float checkpoint that a quantized one decodes to, for programs that read floats.

    Example: `lowbit dequantize ./llama-int4 -o ./llama-float`
    """
    from lowbit.interop.export_checkpoint import dequantize_checkpoint

    written = dequantize_checkpoint(
        model, output, overwrite, max_shard_size * MEGA, progress=not (quiet or as_json)
    )
    if as_json:
        print(json.dumps(asdict(written)))
    elif not quiet:
        say(f"{written.weights:,} weights decoded, {mebibytes(written.bytes)}, written to {output}")
