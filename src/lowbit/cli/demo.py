"""`lowbit demo`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowbit.cli.tables import MEBI
from lowbit.demo import Report, Settings, run

DEFAULTS = Settings()


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture to write, a PNG file.")
    ] = Path("lowbit-demo.png"),
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps: more train longer, and better.")
    ] = DEFAULTS.steps,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train again, even where a trained model is cached.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Train a small GPT-2 on this Python's own documentation, quantize it, and compare.

    No download and no data: about a minute of training, the first time. LOWBIT_CACHE chooses
    where the trained model is kept.

    Example: `lowbit demo --output histograms.png`
    """
    progress = not (quiet or as_json)
    report = run(output, Settings(steps=steps), retrain, progress)
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    console = Console()
    console.print(comparison_table(report))
    console.print(sample_table(report))
    print(report.kernels)
    print(f"float model: {report.model}")
    print(f"picture: {report.picture}")


def comparison_table(report: Report) -> Table:
    """One row per model: bits per weight, size, float size / size, mean squared weight error, …"""
    table = Table(
        title=f"a GPT-2 of {report.parameters:,} parameters; bits and MiB count everything stored",
        caption=f"perplexity of {report.held_out_tokens:,} tokens that were not trained on",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("recipe", no_wrap=True)
    for column in ("bits", "MiB", "ratio", "MSE", "perplexity", "change", "tok/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.recipe,
            f"{row.bits_per_weight:.2f}",
            f"{row.stored_bytes / MEBI:.2f}",
            f"{row.reduction:.2f}×",
            f"{row.mean_squared_error:.1e}",
            f"{row.perplexity:.2f}",
            f"{row.perplexity_change:+.2%}",
            f"{row.tokens_per_second:.0f}",
        )
    return table


def sample_table(report: Report) -> Table:
    """What each model makes of the same prompt with the same seed, on one line of spaces."""
    table = Table(
        title=f"what follows “{report.prompt}”, with the same seed",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        leading=1,
    )
    table.add_column("recipe", no_wrap=True)
    table.add_column("sample", overflow="fold")
    for row in report.rows:
        table.add_row(row.recipe, Text(" ".join(row.sample.split())))
    return table
