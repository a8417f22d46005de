"""Tables that more than one verb prints."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from lowbit.conversion.footprint import Footprint
    from lowbit.inspect.forecast import Forecast


MEBI = 1 << 20


def mebibytes(size: int | None) -> str:
    return "–" if size is None else f"{size / MEBI:,.2f} MiB"


def before_after(before: "Footprint", after: "Footprint") -> Table:
    """Float against quantized: parameters, bits per weight, stored bytes, bytes on disk."""
    table = Table(
        title="everything counted: codes, scales, zero points, padding, what stayed float"
    )
    for column in ("", "float", "quantized", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}", "")
    bits = before.bits_per_weight, after.bits_per_weight
    table.add_row(
        "bits per weight", f"{bits[0]:.2f}", f"{bits[1]:.2f}", f"{bits[0] / bits[1]:.2f}×"
    )
    for name in ("stored_bytes", "disk_bytes"):
        sizes = getattr(before, name), getattr(after, name)
        if None not in sizes:
            table.add_row(
                "tensors" if name == "stored_bytes" else "on disk",
                *map(mebibytes, sizes),
                f"{sizes[0] / sizes[1]:.2f}×",
            )
    return table


def forecast_table(before: "Footprint", found: "Iterable[Forecast]") -> Table:
    """The size of a float model, and the size that each recipe would make of it."""
    table = Table(title="tensors, everything counted")
    for column in ("recipe", "quantized", "bits per weight", "tensors", "ratio"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    size = before.stored_bytes
    table.add_row("float, as it is", "", f"{before.bits_per_weight:.2f}", mebibytes(size), "")
    for each in found:
        table.add_row(
            each.plan.recipe.name,
            f"{each.plan.share:.1%}",
            f"{each.bits_per_weight:.2f}",
            mebibytes(each.stored_bytes),
            f"{size / each.stored_bytes:.2f}×",
        )
    return table
