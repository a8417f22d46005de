"""The engine of a Ray cluster, or of several processes of one machine.

A row of the data set that Ray distributes is a span; `map_batches` hands it to an actor, which has
the model loaded and writes parts. All machines see the same folders. A task whose actor dies is
given to another, and finds the parts that the first one wrote.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from lowbit.errors import UsageError, check_at_least
from lowbit.extras import needed
from lowbit.jobs.job import Job
from lowbit.jobs.tables import Span
from lowbit.jobs.work import Work

CHUNKS = 8  # of a task: a Parquet file of one row group is work for many actors too


class Actor:
    """A process with the model, and so many `threads`."""

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = Work(job)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """batch: lists of the fields of spans. Returns their numbers of rows."""
        done = []
        for number, groups, rows, first in zip(
            batch["number"], batch["groups"], batch["rows"], batch["first"], strict=True
        ):
            span = Span(int(number), tuple(map(int, groups)), int(rows), int(first))
            done.append(sum(self.work.finish(span)))
        return {"done": done}


def on_ray(workers: int, threads: int) -> Callable[[Work, Sequence[Span]], Iterator[int]]:
    """The engine of so many `workers` with so many `threads` each.

    It joins the cluster that RAY_ADDRESS names, or that runs on this machine, or starts one here.

    Raises UsageError for tables that cannot be read in pieces, InputError without Ray.
    """
    check_at_least("workers", workers, 1)
    check_at_least("threads of a worker", threads, 1)
    ray = needed("ray", "ray[data]", "ray")
    data = needed("ray.data", "ray[data]", "ray")

    def engine(work: Work, spans: Sequence[Span]) -> Iterator[int]:
        if any(span.rows is None for span in spans):
            raise UsageError(
                f"{work.job.data} can only be read from its start: --engine ray needs Parquet or"
                " Arrow"
            )
        size = work.job.part_rows
        tasks = [asdict(each) for span in spans for each in span.windows(CHUNKS, size)]
        if not tasks:
            return
        data.DataContext.get_current().enable_progress_bars = False
        done = data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            Actor,
            fn_constructor_args=(work.job, threads),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(workers, len(tasks))),
            num_cpus=threads,
        )
        try:
            for row in done.iter_rows():
                yield row["done"]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    return engine
