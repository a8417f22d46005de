"""Tables as files: Parquet, Arrow, CSV and JSON lines.

Read as spans, which are read independently of each other: some row groups of Parquet, some record
batches of Arrow, the whole of a file of another kind. Memory is that of a few thousand rows, and of
what Parquet's reader holds of a row group.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

from lowbit.checkpoint.documents import check_regular, reading
from lowbit.errors import InputError, check_choice

BLOCK = 16 << 20  # bytes of text that are parsed at once; no row may be longer
GROUP = 64 << 20  # bytes of a row group that is written


@dataclass(frozen=True)
class Span:
    """Consecutive rows of a table, which are computed in chunks.

    groups: in which of its pieces they are. rows: None if nobody knows yet. first: the chunk that
    they begin with, if the pieces hold rows before them.
    """

    number: int
    groups: tuple[int, ...]
    rows: int | None
    first: int = 0

    def windows(self, chunks: int, rows: int) -> list["Span"]:
        """The same rows in spans of so many `chunks` of `rows` each. Each is read from the start
        of its pieces, which costs little beside what a model does with it."""
        if self.rows is None:
            return [self]
        size = chunks * rows
        return [
            replace(self, rows=min(size, self.rows - start), first=start // rows)
            for start in range(0, self.rows, size)
        ]


class Table(ABC):
    """A file. Raises InputError for one that cannot be read as what its name says."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    @abstractmethod
    def schema(self) -> pa.Schema: ...

    @abstractmethod
    def sizes(self) -> list[int | None]:
        """Rows of each of its pieces."""

    @abstractmethod
    def batches(
        self, groups: Sequence[int], columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of some pieces, in order; about so many rows at a time."""

    def spans(self, rows: int) -> list[Span]:
        """The whole table, in spans of at least so many rows, but the last."""
        found: list[Span] = []
        groups: list[int] = []
        held = 0
        sizes = self.sizes()
        for group, size in enumerate(sizes):
            groups.append(group)
            held += size or 0
            if held >= rows or group == len(sizes) - 1:
                known = None if None in (sizes[g] for g in groups) else held
                found.append(Span(len(found), tuple(groups), known))
                groups, held = [], 0
        return found

    def rows_before(self, span: Span) -> int:
        """Rows of the table before the pieces of a span."""
        return sum(size or 0 for size in self.sizes()[: span.groups[0]])

    def chunks(self, span: Span, columns: list[str], rows: int) -> Iterator[pa.Table]:
        """A span in tables of `rows` rows each, but the last."""
        held: list[pa.RecordBatch] = []
        waiting = 0
        schema = pa.schema([self.schema.field(name) for name in columns])
        with reading(self.file, "read"):
            for batch in self.batches(span.groups, columns, rows):
                while waiting + batch.num_rows >= rows:
                    taken = batch.slice(0, rows - waiting)
                    yield pa.Table.from_batches([*held, taken], schema)
                    batch = batch.slice(rows - waiting)
                    held, waiting = [], 0
                if batch.num_rows:
                    held.append(batch)
                    waiting += batch.num_rows
        if held:
            yield pa.Table.from_batches(held, schema)


class Parquet(Table):
    """Its pieces are its row groups."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.opened = pq.ParquetFile(file, pre_buffer=False, memory_map=True)

    @property
    def schema(self) -> pa.Schema:
        return self.opened.schema_arrow

    def sizes(self) -> list[int | None]:
        about = self.opened.metadata
        return [about.row_group(group).num_rows for group in range(about.num_row_groups)]

    def batches(
        self, groups: Sequence[int], columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        for group in groups:
            yield from self.opened.iter_batches(rows, [group], columns, use_threads=False)


class Arrow(Table):
    """An Arrow file, Feather version 2; its pieces are its record batches."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.opened = pa.ipc.open_file(pa.memory_map(str(file)))

    @property
    def schema(self) -> pa.Schema:
        return self.opened.schema

    def sizes(self) -> list[int | None]:
        opened = self.opened
        return [opened.get_batch(n).num_rows for n in range(opened.num_record_batches)]

    def batches(
        self, groups: Sequence[int], columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        for group in groups:
            yield self.opened.get_batch(group).select(columns)


class Lines(Table):
    """Text of one piece, whose rows nobody has counted."""

    @abstractmethod
    def stream(self) -> Any: ...

    @property
    def schema(self) -> pa.Schema:
        with self.stream() as opened:
            return opened.schema

    def sizes(self) -> list[int | None]:
        return [None]

    def batches(
        self, groups: Sequence[int], columns: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        with self.stream() as opened:
            for batch in opened:
                yield batch.select(columns)


class Csv(Lines):
    """Every column is text: what the first rows look like decides nothing. tsv: tabs separate."""

    def stream(self) -> Any:
        parse = pa.csv.ParseOptions(
            delimiter="\t" if self.file.suffix == ".tsv" else ",", newlines_in_values=True
        )
        read = pa.csv.ReadOptions(block_size=BLOCK)
        with pa.csv.open_csv(self.file, read, parse) as opened:
            names = opened.schema.names
        convert = pa.csv.ConvertOptions(column_types={name: pa.string() for name in names})
        return pa.csv.open_csv(self.file, read, parse, convert)


class JsonLines(Lines):
    """An object a line. What the first 16 MiB hold decides which fields there are."""

    def stream(self) -> Any:
        read = pa.json.ReadOptions(block_size=BLOCK)
        with pa.json.open_json(self.file, read) as first:
            schema = first.schema
        parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        return pa.json.open_json(self.file, read, parse)


READERS: dict[str, type[Table]] = {
    ".parquet": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
    ".csv": Csv,
    ".tsv": Csv,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
}


def open_table(file: Path) -> Table:
    """Raises InputError for what is no table, and for a name that does not say which."""
    check_choice("the kind of table", file.suffix, READERS, error=InputError)
    with reading(file, "read"):
        if not file.exists():
            raise InputError(f"there is no file {file}")
        check_regular(file)
        found = READERS[file.suffix](file)
        _ = found.schema
    return found


class JsonWriter:
    """Arrow's tables as JSON, an object a line."""

    def __init__(self, file: Path) -> None:
        self.opened = file.open("w", encoding="utf-8")

    def write_table(self, table: pa.Table) -> None:
        # Python's numbers take ten times the memory of Arrow's.
        for batch in table.to_batches(max_chunksize=256):
            for row in batch.to_pylist():
                self.opened.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.opened.close()


def _parquet(file: Path, schema: pa.Schema) -> Any:
    # Vectors repeat nothing that a dictionary could hold, and their bounds help nobody.
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    return pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=plain, write_statistics=plain
    )


def _csv(file: Path, schema: pa.Schema) -> Any:
    return pa.csv.CSVWriter(file, schema)


def _tsv(file: Path, schema: pa.Schema) -> Any:
    return pa.csv.CSVWriter(file, schema, write_options=pa.csv.WriteOptions(delimiter="\t"))


WRITERS: dict[str, Any] = {
    ".parquet": _parquet,
    ".arrow": lambda file, schema: pa.ipc.new_file(file, schema),
    ".feather": lambda file, schema: pa.ipc.new_file(file, schema),
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": lambda file, schema: JsonWriter(file),
    ".ndjson": lambda file, schema: JsonWriter(file),
}


def check_written(output: Path, schema: pa.Schema) -> None:
    """Raises InputError if a file of this name cannot hold such a table."""
    check_choice("the kind of table", output.suffix, WRITERS, error=InputError)
    nested = [field.name for field in schema if pa.types.is_nested(field.type)]
    if WRITERS[output.suffix] in (_csv, _tsv) and nested:
        raise InputError(
            f"a {output.suffix} cannot hold the lists of {nested[0]}: write {output.stem}.parquet"
        )


def write(file: Path, kind: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Tables, one after the other, as one of this `kind`: a suffix."""
    with _closing(WRITERS[kind](file, schema)) as writer:
        held: list[pa.Table] = []
        for table in tables:
            held.append(table)
            if sum(each.nbytes for each in held) >= GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))


@contextmanager
def _closing(writer: Any) -> Iterator[Any]:
    try:
        yield writer
    finally:
        writer.close()
