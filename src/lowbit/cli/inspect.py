"""`lowbit inspect`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from lowbit.cli.options import AsJson
from lowbit.cli.screen import Screen
from lowbit.cli.tables import forecast_table, mebibytes
from lowbit.kernels import native

if TYPE_CHECKING:
    from lowbit.formats.error import WeightError
    from lowbit.inspect.checkpoint import Inspection


def inspect(
    model: Annotated[Path, typer.Argument(help="A folder that lowbit wrote, or a float model's.")],
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--verify", help="Compare every tensor with its hash first.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Totals only.")] = False,
) -> None:
    """Show what a model holds: format, bits, bytes, error and kernel of each module.

    Of a float model: its size, and the size that each usual recipe would make of it.

    Example: `lowbit inspect ./bert-base-int4`
    """
    from lowbit.checkpoint.hashes import verify
    from lowbit.inspect.checkpoint import inspect_checkpoint
    from lowbit.inspect.forecast import is_float

    if not check and is_float(model):
        _inspect_float(model, as_json)
        return
    verified = verify(model) if check else None
    inspection = inspect_checkpoint(model)
    if as_json:
        print(json.dumps(inspection.to_dict() | ({"verified": verified} if check else {})))
        return
    console = Screen()
    if not quiet:
        console.print(module_table(inspection))
        for kernel, why in inspection.kernels:
            console.print(f"{kernel}: {why}", soft_wrap=True)
    console.print(total_table(inspection))
    for sentence in inspection.slow:
        console.print(sentence, soft_wrap=True, highlight=False)
    if check:
        console.print(f"{verified} tensors and config.json are what lowbit wrote.")
    if not native.available():
        console.print(
            f"Every operator runs in PyTorch, which is slow: {native.reason()}.", soft_wrap=True
        )
    if not inspection.guarded:
        console.print(
            "A program that does not import lowbit loads wrong weights from this folder, which was"
            " written before lowbit prevented that: load it and save it again.",
            soft_wrap=True,
        )


def _inspect_float(model: Path, as_json: bool) -> None:
    from lowbit.inspect.forecast import float_skeleton, forecast, forecasts
    from lowbit.inspect.speed import speed_notes
    from lowbit.progress import tracked

    empty, before = float_skeleton(model)
    recipes = tracked(list(forecasts(empty, before)), "speed", "recipe", not as_json, leave=False)
    found = [replace(each, notes=speed_notes(each.plan)) for each in recipes]
    if as_json:
        print(json.dumps(before.to_dict() | {"recipes": [each.to_dict() for each in found]}))
        return
    console = Screen()
    console.print(f"{model} is a float model: {type(empty).__name__}.", soft_wrap=True)
    console.print(forecast_table(before, found))
    for each in found:
        for note in each.notes:
            console.print(f"{each.plan.recipe.name}: {note}", soft_wrap=True)
    chosen = forecast(empty, before, None)
    for note in chosen.notes:
        console.print(f"lowbit quantize {model} -o OUT: {note}", soft_wrap=True)


def module_table(inspection: "Inspection") -> Table:
    """One row per module with a stored weight, one for everything that is plain float."""
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in ("module", "stored as", "bytes", "bits/weight", "SNR dB", "kernel"):
        table.add_column(column, overflow="fold")
    stored = [row for row in inspection.rows if row.kernel or not row.size.parameters]
    plain = [row for row in inspection.rows if row not in stored]
    for row in stored:
        error = inspection.errors.get(row.size.name)
        table.add_row(
            row.size.name,
            row.stored_as,
            f"{row.size.stored_bytes:,}",
            f"{row.size.bits_per_weight:.2f}" if row.size.parameters else "",
            _quality(error),
            row.kernel,
        )
    table.add_row(
        f"{len(plain)} other modules",
        " ".join(sorted({row.stored_as for row in plain})),
        f"{sum(row.size.stored_bytes for row in plain):,}",
    )
    return table


def _quality(error: "WeightError | None") -> str:
    """The signal-to-noise ratio; what has no error was trained to be what is stored."""
    if error is None:
        return ""
    return f"{error.signal_to_noise_db:.1f}" if error.relative_error else "trained"


def total_table(inspection: "Inspection") -> Table:
    """Sizes of the whole model, and of the same model in float."""
    total = inspection.footprint
    table = Table(title="everything counted", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{total.parameters:,}")
    table.add_row("of which quantized", f"{inspection.quantized_share:.1%}")
    table.add_row("read for one token", f"{inspection.parameters_read:,}")
    table.add_row("bits per weight", f"{total.bits_per_weight:.2f}")
    table.add_row("tensors", mebibytes(total.stored_bytes))
    table.add_row("read for one token", mebibytes(inspection.bytes_read))
    table.add_row("on disk", mebibytes(total.disk_bytes))
    table.add_row("resident after loading", mebibytes(total.resident_bytes))
    table.add_row("resident after a forward pass", mebibytes(inspection.resident_after_forward))
    table.add_row("the same model in float", mebibytes(total.float_bytes))
    return table
