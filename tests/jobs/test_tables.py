"""Tables are read and written as pyarrow's own simple functions do it."""

import json

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from lowbit.errors import InputError
from lowbit.jobs.tables import WRITERS, check_written, open_table, write

TABLE = pa.table({"id": range(23), "text": [f'line {n},\t"{n}"\nend' for n in range(23)]})


def save(file):
    kind = file.suffix
    if kind == ".parquet":
        pq.write_table(TABLE, file, row_group_size=5)
    elif kind in (".arrow", ".feather"):
        pyarrow.feather.write_feather(TABLE, file, chunksize=5, compression="uncompressed")
    elif kind in (".csv", ".tsv"):
        options = pa.csv.WriteOptions(delimiter="\t" if kind == ".tsv" else ",")
        pa.csv.write_csv(TABLE, file, options)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))
    return file


@pytest.mark.parametrize("kind", [".parquet", ".arrow", ".feather", ".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_chunks_are_the_rows_in_order(tmp_path, kind, rows):
    table = open_table(save(tmp_path / f"table{kind}"))
    spans = table.spans(rows)
    chunks = [[chunk for chunk in table.chunks(span, ["text"], rows)] for span in spans]
    for of_span in chunks:
        assert all(chunk.num_rows == rows for chunk in of_span[:-1])
    found = pa.concat_tables([chunk for of_span in chunks for chunk in of_span])
    assert found.column("text").to_pylist() == TABLE.column("text").to_pylist()
    if kind in (".parquet", ".arrow", ".feather"):
        assert sum(span.rows for span in spans) == 23
        assert len(spans) == {1: 5, 4: 5, 7: 3, 100: 1}[rows]


def test_windows_are_the_chunks_of_a_span(tmp_path):
    table = open_table(save(tmp_path / "table.parquet"))
    (span,) = table.spans(100)
    windows = span.windows(3, 4)
    assert [(each.first, each.rows) for each in windows] == [(0, 12), (3, 11)]


def test_a_csv_is_text(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("id,text\n007,a\nx,b\n")
    table = open_table(file)
    (span,) = table.spans(10)
    (chunk,) = table.chunks(span, ["id", "text"], 10)
    assert chunk.to_pylist() == [{"id": "007", "text": "a"}, {"id": "x", "text": "b"}]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_read(tmp_path, kind):
    file = tmp_path / f"out{kind}"
    check_written(file, TABLE.schema)
    write(file, kind, TABLE.schema, [TABLE.slice(0, 9), TABLE.slice(9)])
    table = open_table(file)
    (span,) = table.spans(100)
    (found,) = table.chunks(span, ["text", "id"], 100)
    assert found.column("text").to_pylist() == TABLE.column("text").to_pylist()
    assert [int(n) for n in found.column("id").to_pylist()] == list(range(23))


def test_files_that_are_no_tables_are_refused(tmp_path):
    for name, stored, told in (
        ("a.parquet", b"PAR1 no", "a.parquet cannot be read"),
        ("a.jsonl", b'{"a": 1}\n{"a": ', "a.jsonl cannot be read"),
        ("a.csv", b"", "a.csv cannot be read"),
        ("a.txt", b"a", "kind of table '.txt' is unknown"),
    ):
        file = tmp_path / name
        file.write_bytes(stored)
        with pytest.raises(InputError, match=told):
            table = open_table(file)
            list(table.chunks(table.spans(10)[0], table.schema.names, 10))
    with pytest.raises(InputError, match="there is no file"):
        open_table(tmp_path / "none.csv")
    vectors = pa.schema([pa.field("v", pa.list_(pa.float32(), 2))])
    for kind in (".csv", ".tsv"):
        told = f"a {kind} cannot hold the lists of v: write o.parquet"
        with pytest.raises(InputError, match=told):
            check_written(tmp_path / f"o{kind}", vectors)
