"""`lowbit demo`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from lowbit.cli.choices import DEMO_STEPS
from lowbit.cli.options import AsJson, this_command
from lowbit.cli.screen import Screen
from lowbit.cli.summary import say_written
from lowbit.cli.tables import MEBI

if TYPE_CHECKING:
    from lowbit.evaluation.study import Study


def demo(
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="A .html, .md or .json file; repeatable.",
            show_default="lowbit-demo.html",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps. More take longer and give a better model.")
    ] = DEMO_STEPS,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train again, even if a trained model is cached.")
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Train a small GPT-2 on this Python's own documentation, quantize it, and report.

    It downloads nothing. The first run trains for about a minute. The trained model is kept in the
    folder that the variable LOWBIT_CACHE names.

    Example: `lowbit demo -o report.html`
    """
    from lowbit.demo import DemoSettings, run

    outputs = output or [Path("lowbit-demo.html")]
    progress = not (quiet or as_json)
    report = run(outputs, DemoSettings(steps=steps), retrain, progress, [this_command()])
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    console = Screen()
    console.print(comparison_table(report.study))
    console.print(sample_table(report.study))
    for line in kernel_lines(report.study):
        console.print(line, soft_wrap=True, markup=False)
    say_written(report.study, report.outputs)
    console.print(f"float model: {report.model}", soft_wrap=True)


def comparison_table(study: "Study") -> Table:
    """One row per model: bits per weight, size, perplexity, divergence, tokens per second, those of
    the float model in the same rounds, and the ratio of the two."""
    reference = study.reference
    found = reference.measurements[0]
    table = Table(
        title=f"a GPT-2 of {reference.parameters:,} parameters; bits and MiB count everything",
        caption=(
            f"perplexity and divergence of {found.items:,} tokens that were not trained on;"
            " float: tok/s of float32 in the same rounds"
        ),
        box=box.SIMPLE,
        padding=0,  # it fits into 80 columns
    )
    table.add_column("recipe", no_wrap=True)
    for column in ("bits", "MiB", "ratio", "ppl", "change", "KL", "tok/s", "float", "speed"):
        table.add_column(column, justify="right", no_wrap=True)
    before = found.metrics["perplexity"].value
    for model in study.models:
        metrics, timing = model.measurements[0].metrics, model.timings[0]
        divergence = metrics.get("KL divergence")  # the reference has none from itself
        rate, gain = timing.tokens_per_second, timing.speedup
        speeds = (
            ("", "", "") if gain is None else (f"{rate:.0f}", f"{rate / gain:.0f}", f"{gain:.2f}×")
        )
        table.add_row(
            model.name,
            f"{model.bits_per_weight:.2f}",
            f"{model.stored_bytes / MEBI:.2f}",
            f"{reference.stored_bytes / model.stored_bytes:.1f}×",
            f"{metrics['perplexity'].value:.1f}",
            "" if divergence is None else _change(metrics["perplexity"].value / before - 1),
            "" if divergence is None else f"{divergence.value:.1e}",
            *speeds,
        )
    return table


def _change(share: float) -> str:
    """Of a share that rounds to nothing, no sign."""
    words = f"{share:+.2%}"
    return "±0.00%" if words in ("+0.00%", "-0.00%") else words.replace("-", "−")


def kernel_lines(study: "Study") -> Iterator[str]:
    """For each model how many layers each kernel serves, and why that one."""
    from lowbit.report.tables import kernels

    for model in study.models:
        used = (
            f"{count} by {name}{f' ({why})' if why else ''}" for name, why, count in kernels(model)
        )
        if served := ", ".join(used):
            yield f"{model.name}, layers: {served}"


def sample_table(study: "Study") -> Table:
    """What each model makes of the same prompt with the same seed, on one line of spaces."""
    prompt = study.reference.measurements[1].samples[0].source
    table = Table(
        title=f"what follows “{prompt}”, with the same seed",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        leading=1,
    )
    table.add_column("recipe", no_wrap=True)
    table.add_column("sample", overflow="fold")
    for model in study.models:
        table.add_row(model.name, Text(" ".join(model.measurements[1].samples[0].output.split())))
    return table
