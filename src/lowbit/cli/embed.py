"""`lowbit embed`."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli.job_options import JobOptions
from lowbit.cli.spread import spread


@spread
def embed(
    model: Annotated[
        str, typer.Argument(help="A folder with an encoder or a decoder, float or integer.")
    ],
    data: Annotated[Path, typer.Option(help="A table: .parquet, .arrow, .csv, .tsv or .jsonl.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table to write: .parquet, .arrow or .jsonl.")
    ],
    table: JobOptions,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="mean, cls, max, lasttoken, weightedmean or mean_sqrt_len_tokens.",
            show_default="the folder's; mean",
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize", help="Vectors of length 1.", show_default="the folder's"
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Most tokens of a text.", show_default="the folder's")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text before each text.", show_default="the folder's")
    ] = None,
) -> None:
    """Write a vector for each text of a table, in the order of its rows.

    A job that was killed goes on where it was if the same command is given again.

    Example: `lowbit embed ./bert-base-int4 --data docs.parquet --column text -o vectors.parquet`
    """
    options = {
        "pooling": pooling,
        "normalize": normalize,
        "max_length": max_length,
        "prompt": prompt,
    }
    table.run(model, data, output, "embedding", options)
