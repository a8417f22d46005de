"""What `lowbit train` prints at the end."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from lowbit.cli.screen import Screen

if TYPE_CHECKING:
    from lowbit.training.ending import Outcome

MOST = 300  # characters of a text


def show(outcome: "Outcome", quiet: bool) -> None:
    """Print notes, scores, samples and folders."""
    if not quiet and outcome.folders:
        console = Screen()
        for note in outcome.notes:
            console.print(note, soft_wrap=True)
        console.print(outcome_table(outcome))
        for line in sample_lines(outcome):
            console.print(line, soft_wrap=True, markup=False)
        for folder in outcome.folders:
            console.print(f"written to {folder}", soft_wrap=True)


def outcome_table(outcome: "Outcome") -> Table:
    """One row per metric, one column per model."""
    table = Table(
        title=f"after {outcome.steps:,} steps in {outcome.seconds:,.0f} s", box=box.SIMPLE
    )
    table.add_column("")
    for name in outcome.measurements:
        table.add_column(name, justify="right")
    for found, prefix in ((outcome.measurements, ""), (outcome.test, "test ")):
        for name in dict.fromkeys(n for m in found.values() for n in m.metrics):
            cells = [m.metrics.get(name) for m in found.values()]
            table.add_row(prefix + name, *("–" if c is None else f"{c.value:.4f}" for c in cells))
    if outcome.losses:
        metric = next(iter(outcome.losses.values())).metric
        losses = [str(outcome.losses.get(name, "")) for name in outcome.measurements]
        table.add_row(f"{'test ' if outcome.test else ''}{metric}, loss", *losses)
    return table


def sample_lines(outcome: "Outcome") -> Iterator[str]:
    """Source, reference and output of a few items, if the task has any."""
    *_, last = outcome.measurements.values()
    for sample in last.samples:
        if sample.reference is not None:
            yield f"source     {_cut(sample.source)}"
            yield f"reference  {_cut(sample.reference)}"
            yield f"output     {_cut(sample.output)}"
            yield ""


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST]} … ({len(text):,} characters)"
