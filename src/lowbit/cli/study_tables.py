"""A study as tables for the terminal: those of the report."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lowbit.evaluation.study import Study
    from lowbit.report.tables import Cell


COLOURS = {"better": "green", "worse": "red", "": "dim"}


def study_tables(study: "Study") -> Iterator[Table]:
    """Size, speed and each task: one row a number, one column a model."""
    from lowbit.report.tables import groups

    for group in groups(study):
        table = Table(title=group.title, caption=group.note, box=box.SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("")
        for model in study.models:
            table.add_column(Text(model.name), justify="right", overflow="fold")
        for row in group.rows:
            label = Text.assemble(row.label, "\n" if row.note else "", (row.note, "dim"))
            table.add_row(label, *map(_cell, row.cells))
        yield table


def written(study: "Study") -> Iterator[str]:
    """The prompts and texts of tasks that have nothing else to show, model after model."""
    for model in study.models:
        for measurement in model.measurements:
            for sample in () if measurement.metrics else measurement.samples:
                yield f"{model.name}: {sample.source} → {sample.output}\n"


def _cell(cell: "Cell") -> Text:
    told = f"\n{cell.detail}" if cell.detail else ""
    return Text.assemble(cell.text, (told, COLOURS[cell.effect]))
