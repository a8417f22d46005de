"""`lowbit quantize`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from lowbit.cli.choices import MEGA, SHARD_MEGABYTES, SOLVERS
from lowbit.cli.options import AsJson, Overwrite, Quiet, ShardSize
from lowbit.cli.screen import Screen
from lowbit.cli.settings_file import WithRecipeHint
from lowbit.cli.tables import before_after, forecast_table
from lowbit.errors import UsageError

if TYPE_CHECKING:
    from lowbit.conversion.apply import Result
    from lowbit.conversion.plan import Plan
    from lowbit.conversion.recipe import Recipe


SETTINGS = {"cls": WithRecipeHint}


def quantize(
    model: Annotated[str, typer.Argument(help="A folder with a float checkpoint, or a hub id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A preset (int8, int4-all, bcq3, int8-dynamic, …) or a .yaml file.",
            show_default="by the model's kind",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, help="Instead of a recipe: bits of linear layers; the rest has 8."
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Inputs that share a scale, with --bits.",
            show_default="64, or a row",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and the size; write nothing.")
    ] = False,
    solver: Annotated[
        str, typer.Option(help=f"How codes are chosen: {', '.join(SOLVERS)}.")
    ] = "nearest",
    calibration: Annotated[
        str | None,
        typer.Option(help="A text: solvers learn from it, static activations are measured on it."),
    ] = None,
    correct_bias: Annotated[
        bool, typer.Option("--correct-bias", help="Subtract a layer's mean error from its bias.")
    ] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Rotate attention heads first, to spread outliers.")
    ] = False,
    tune: Annotated[
        int,
        typer.Option(min=0, help="At the end, tune all scales in this many passes over the text."),
    ] = 0,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Windows or lines to read.", show_default="128"),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of a window.", show_default="all positions, at most 512"),
    ] = None,
    overwrite: Overwrite = False,
    max_shard_size: ShardSize = SHARD_MEGABYTES,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a checkpoint into a new folder.

    Without --calibration it reads one tensor at a time, in bounded memory.

    Example: `lowbit quantize ./bert-base -o ./bert-base-8bit`

    Example: `lowbit quantize ./gpt2 --bits 4 --group 32 --dry-run`

    Example: `lowbit quantize ./gpt2 --recipe bcq3-all-dynamic -o ./gpt2-3bit`

    Example: `lowbit quantize ./gpt2 --recipe int3 --solver gptq --calibration wiki.txt -o ./out`
    """
    from lowbit.inspect.speed import speed_notes
    from lowbit.quantization.calibrated import quantize_calibrated
    from lowbit.quantization.streaming import quantize_checkpoint
    from lowbit.solvers import Solver

    chosen = _recipe(recipe, bits, group)
    if dry_run:
        _show_plan(model, chosen, as_json)
        return
    if output is None:
        raise UsageError("give --output, the folder to write, or --dry-run")
    shared: dict[str, Any] = {
        "overwrite": overwrite,
        "max_shard_bytes": max_shard_size * MEGA,
        "progress": not (quiet or as_json),
        "solver": Solver(solver, correct_bias=correct_bias, rotate=rotate, tune=tune),
    }
    reading = {"samples": samples, "length": length}
    given: dict[str, Any] = {name: value for name, value in reading.items() if value is not None}
    if calibration is None:
        if given:
            raise UsageError(f"--{next(iter(given))} says how a text is read: give a --calibration")
        result = quantize_checkpoint(model, chosen, output, **shared)
    else:
        result = quantize_calibrated(model, chosen, output, calibration, **given, **shared)
    if not quiet:
        result = replace(result, notes=(*result.notes, *speed_notes(result.plan)))
    show(result, output, as_json, quiet)


def _recipe(recipe: str | None, bits: int | None, group: int | None) -> "str | Recipe | None":
    from lowbit.conversion.recipe import recipe_of

    if bits is None:
        if group is not None:
            raise UsageError("--group needs --bits")
        return recipe
    if recipe is not None:
        raise UsageError("give --recipe or --bits, one of them")
    return recipe_of(bits, group)


def _show_plan(model: str, recipe: "str | Recipe | None", as_json: bool) -> None:
    from lowbit.conversion.recipe import load_recipe
    from lowbit.inspect.forecast import float_skeleton, forecast
    from lowbit.inspect.speed import speed_notes

    empty, before = float_skeleton(model)
    found = forecast(empty, before, None if recipe is None else load_recipe(recipe))
    found = replace(found, notes=(*found.notes, *speed_notes(found.plan)))
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    console = Screen()
    console.print(plan_table(found.plan))
    console.print(forecast_table(before, [found]))
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print("nothing was written")


def show(result: "Result", output: Path, as_json: bool, quiet: bool) -> None:
    """What was written to a folder."""
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


def plan_table(plan: "Plan") -> Table:
    """What was quantized and what was kept, modules with the same reason together."""
    table = Table(
        box=box.SIMPLE,
        title=f"{plan.quantized_parameters:,} of {plan.parameters:,} parameters"
        f" quantized ({plan.share:.1%}) by recipe {plan.recipe.name}",
    )
    for column in ("", "why", "modules", "parameters", "first"):
        right = column in ("modules", "parameters")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for summary in plan.summaries():
        table.add_row(
            "quantized" if summary.quantized else "kept",
            summary.reason,
            f"{summary.modules:,}",
            f"{summary.parameters:,}",
            summary.example,
        )
    table.add_row("kept", "norms and biases", "", f"{plan.vector_parameters:,}", "")
    return table
