"""A whole job: parts of it by one engine or another, then one table of them."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from lowbit.checkpoint.atomic_write import check_file, staged_file, writing
from lowbit.checkpoint.work_folder import claimed
from lowbit.jobs.job import Job
from lowbit.jobs.parts import Parts
from lowbit.jobs.tables import Span, write
from lowbit.jobs.work import Work
from lowbit.progress import progress_bar

# Writes the parts of all spans; yields numbers of rows as they are done.
Engine = Callable[[Work, Sequence[Span]], Iterable[int]]


@dataclass(frozen=True)
class Summary:
    """rows: of the output. cut: had more tokens than the model reads. missing: have no result,
    because they had no text. seconds: of this run."""

    rows: int
    cut: int
    missing: int
    seconds: float


def here(work: Work, spans: Sequence[Span]) -> Iterator[int]:
    """The engine of one process."""
    for span in spans:
        yield from work.finish(span)


def run(job: Job, engine: Engine = here, overwrite: bool = False, progress: bool = True) -> Summary:
    """Write the job's output, or go on with a job that was killed.

    overwrite: replace an output that exists, and parts of another job. progress: show a bar with
    the time left.

    Raises UsageError if the output exists already or is written by another job, if parts that a
    killed job left belong to a job with another model, data or options, and as `Work` does.
    """
    # Another process, perhaps on another machine, has another current folder.
    job = replace(job, data=job.data.absolute(), output=job.output.absolute())
    parts = Parts(job.output)
    # A job that was killed while it overwrote goes on.
    check_file(job.output, overwrite or parts.folder.exists())
    with claimed(job.output):
        started = time.monotonic()
        work = Work(job)
        parts.begin(job.identity(), overwrite)
        spans = work.table.spans(job.part_rows)
        known = [span.rows for span in spans if span.rows is not None]
        total = sum(known) if len(known) == len(spans) else None
        with (
            parts.kept_if_any(),
            progress_bar(total, work.pipeline.kind, "row", progress) as bar,
        ):
            for rows in engine(work, spans):
                bar.update(rows)
        added = work.columns.fields[0].name
        counts = dict.fromkeys(("rows", "cut", "missing"), 0)

        def counted() -> Iterator[pa.Table]:
            for table, cut in parts.read():
                counts["rows"] += table.num_rows
                counts["cut"] += cut
                counts["missing"] += table.column(added).null_count
                yield table

        with staged_file(job.output) as unfinished, writing(job.output):
            write(unfinished, job.output.suffix, work.schema, counted())
        parts.remove()
    return Summary(**counts, seconds=time.monotonic() - started)
