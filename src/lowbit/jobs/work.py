"""One span of a table -> parts of the output. Every process of a job has one of these."""

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from lowbit.errors import UsageError, check_choice
from lowbit.jobs.job import Job
from lowbit.jobs.parts import Parts
from lowbit.jobs.results import columns_of
from lowbit.jobs.tables import Span, check_written, open_table
from lowbit.pipelines.opened import open_pipeline
from lowbit.pipelines.pipeline import Row, batches


class Work:
    """The job's model, loaded, and its table, opened.

    Raises UsageError and InputError for all that can be known before the first row is read: a
    column that is not there or no text, a name that is taken, an output that cannot hold results.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.table = open_table(job.data)
        named = self.table.schema.names
        self.texts = [job.column] + ([] if job.pair is None else [job.pair])
        for name in self.texts:
            check_choice("column", name, named)
            kind = self.table.schema.field(name).type
            if not (pa.types.is_string(_plain(kind)) or pa.types.is_large_string(_plain(kind))):
                raise UsageError(f"column {name} of {job.data} holds {kind}, not text")
        self.kept = named if job.keep is None else list(job.keep)
        for name in self.kept:
            check_choice("column", name, named)
        self.pipeline = open_pipeline(job.model, job.kind, **job.options)
        if job.pair is not None and not self.pipeline.pairs:
            raise UsageError(
                f"{self.pipeline.kind} reads one text per row: omit the column of the second text"
            )
        self.columns = columns_of(self.pipeline)
        taken = [field.name for field in self.columns.fields if field.name in self.kept]
        if taken:
            raise UsageError(
                f"{job.data} has a column {taken[0]}, which the job adds: choose other columns with"
                " --keep"
            )
        fields = [self.table.schema.field(name) for name in self.kept] + self.columns.fields
        self.schema = pa.schema(fields)
        check_written(job.output, self.schema)
        self.parts = Parts(job.output)

    def finish(self, span: Span) -> Iterator[int]:
        """Write the parts of a span that are not there. Yields numbers of rows as they are done."""
        size = self.job.part_rows
        last = None
        if span.rows is not None:
            last = span.first + -(-span.rows // size)
            if all(self.parts.has(span.number, number) for number in range(span.first, last)):
                yield span.rows
                return
        read = list(dict.fromkeys([*self.kept, *self.texts]))
        chunks = islice(enumerate(self.table.chunks(span, read, size)), span.first, last)
        for number, chunk in chunks:
            if self.parts.has(span.number, number):
                yield chunk.num_rows
            else:
                yield from self._part(span, number, chunk)

    def _part(self, span: Span, number: int, chunk: pa.Table) -> Iterator[int]:
        """Compute and write one; the longest texts first."""
        first = self.table.rows_before(span) + number * self.job.part_rows
        texts = [chunk.column(name).cast(pa.large_string()).to_pylist() for name in self.texts]
        rows: list[Row] = list(zip(*texts, strict=True))
        # Not every table can tell a missing text from an empty one.
        there = [i for i, row in enumerate(rows) if all(text and text.strip() for text in row)]
        items = self.pipeline.encode([rows[index] for index in there])
        results = [None] * len(rows)
        left = len(rows)
        for batch in batches([item.length for item in items], self.job.tokens):
            numbers = [first + there[place] for place in batch]
            found = self.pipeline.run([items[place] for place in batch], numbers)
            for place, result in zip(batch, found, strict=True):
                results[there[place]] = result
            left -= len(batch)
            yield len(batch)
        arrays = [chunk.column(name) for name in self.kept] + self.columns.arrays(results)
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        self.parts.write(span.number, number, table, sum(item.cut for item in items))
        yield left  # rows without a text


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, however often they are repeated."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
