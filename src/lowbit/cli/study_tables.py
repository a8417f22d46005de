"""A study as tables for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from lowbit.cli.tables import mebibytes
from lowbit.evaluation.study import Measurement, Metric, ModelRecord, Study


def metric_table(study: Study) -> Table | None:
    """One row per model, one column per metric, with the change against the first model."""
    if not any(record.measurements for record in study.models):
        return None
    first = next(m for record in study.models for m in record.measurements)
    settings = ", ".join(f"{k} {v}" for k, v in first.settings.items() if v is not None)
    table = Table(
        title=f"{first.task} of {first.data}: {first.items:,} {first.unit}"
        + (f" ({settings})" if settings else ""),
        box=box.SIMPLE,
    )
    table.add_column("model", overflow="fold")
    names = {name: m for r in study.models for x in r.measurements for name, m in x.metrics.items()}
    for name in names:
        table.add_column(name, justify="right")
    for record in study.models:
        cells = (_cell(record, study.reference, name) for name in names)
        table.add_row(Text(record.name), *cells)
    table.caption = "\n".join(f"{name}: {m.note}" for name, m in names.items() if m.note)
    return table


def size_table(study: Study) -> Table:
    """One row per model: everything counted."""
    table = Table(title="everything counted", box=box.SIMPLE)
    table.add_column("model", overflow="fold")
    columns = ("bits/weight", "on disk", "×", "loaded", "after a forward pass", "peak")
    for column in columns:
        table.add_column(column, justify="right")
    for record in study.models:
        table.add_row(
            Text(record.name),
            f"{record.bits_per_weight:.2f}",
            mebibytes(record.disk_bytes),
            f"{study.reference.stored_bytes / record.stored_bytes:.2f}×",
            mebibytes(record.resident_bytes),
            mebibytes(record.resident_after_forward_bytes),
            mebibytes(record.peak_bytes),
        )
    return table


def timing_table(study: Study) -> Table | None:
    """One row per model and shape; the reference was timed in the same rounds."""
    if not any(record.timings for record in study.models):
        return None
    threads = study.environment["threads"]
    table = Table(title=f"median of a few rounds, {threads} threads", box=box.SIMPLE)
    table.add_column("model", overflow="fold")
    for column in ("batch × length", "new", "ms", "spread", "tokens/s", "× reference"):
        table.add_column(column, justify="right")
    for record in study.models:
        for timing in record.timings:
            table.add_row(
                Text(record.name),
                f"{timing.batch} × {timing.length}",
                str(timing.new_tokens or ""),
                f"{1e3 * timing.seconds:,.1f}",
                f"{1e3 * timing.spread:,.1f}",
                f"{timing.tokens_per_second:,.0f}",
                "" if timing.speedup is None else f"{timing.speedup:.2f}×",
            )
    return table


def _cell(record: ModelRecord, reference: ModelRecord, name: str) -> str:
    now, before = metric(record, name), metric(reference, name)
    if now is None:
        return "–"
    if record is reference or before is None or not before.value:
        return f"{now.value:,.5g}"
    if now.better == "higher":  # a share or a score: its plain difference
        return f"{now.value:,.5g} ({now.value - before.value:+.4f})"
    return f"{now.value:,.5g} ({now.value / before.value - 1:+.2%})"


def metric(record: ModelRecord, name: str) -> Metric | None:
    """The first metric of that name among a model's measurements."""
    found: list[Measurement] = [m for m in record.measurements if name in m.metrics]
    return found[0].metrics[name] if found else None
