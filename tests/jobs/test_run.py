"""A job's output is that of one row after the other, however often the job was killed."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from lowbit.errors import InputError, UsageError
from lowbit.jobs.job import Job
from lowbit.jobs.parts import Parts
from lowbit.jobs.run import here, run
from lowbit.pipelines.opened import open_pipeline
from tests.folders import byte_tokenizer, save
from tests.models import BERT, make
from tests.small_tokenizers import words

TEXTS = ["ab" * (n * 7 % 20) for n in range(30)]
TEXTS[11] = None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def expected(model):
    embedder = open_pipeline(model)
    return [embedder([(text,)], 1)[0] if text else None for text in TEXTS]


@pytest.fixture
def job(model, tmp_path):
    table = pa.table({"id": range(30), "text": TEXTS})
    pq.write_table(table, tmp_path / "docs.parquet", row_group_size=13)
    output = tmp_path / "vectors.parquet"
    return Job(str(model), tmp_path / "docs.parquet", "text", output, tokens=64, part_rows=4)


def check(file, expected):
    table = pq.read_table(file)
    assert table.column("id").to_pylist() == list(range(30))
    assert table.column("text").to_pylist() == TEXTS
    for got, wanted in zip(table.column("embedding").to_pylist(), expected, strict=True):
        if wanted is None:
            assert got is None
        else:
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def left(job):
    return sorted(path.name for path in job.output.parent.iterdir())


def test_rows_keep_their_order_and_their_columns(job, expected):
    found = run(job, progress=False)
    assert (found.rows, found.missing, found.cut) == (30, 3, 0)
    check(job.output, expected)
    assert left(job) == ["docs.parquet", "vectors.parquet"]
    with pytest.raises(UsageError, match="exists .--overwrite"):
        run(job, progress=False)
    assert run(job, overwrite=True, progress=False).rows == 30


def stopping(after):
    def engine(work, spans):
        for number, rows in enumerate(here(work, spans)):
            if number == after:
                raise KeyboardInterrupt
            yield rows

    return engine


def test_a_job_that_was_stopped_goes_on(job, expected):
    for after in (3, 9, 2):
        with pytest.raises(KeyboardInterrupt):
            run(job, stopping(after), progress=False)
        assert not job.output.exists()
    parts = {file: file.stat().st_mtime_ns for file in job.output.parent.glob("*.parts/*.arrow")}
    assert parts
    run(job, stopping(1000), progress=False)
    check(job.output, expected)


def test_what_failed_before_its_first_part_does_not_block_the_corrected_job(job, expected):
    wrong = replace(job, options={"pooling": "cls"})
    with pytest.raises(KeyboardInterrupt):
        run(wrong, stopping(0), progress=False)
    assert left(job) == ["docs.parquet"]
    # A job that was killed could not remove its folder.
    Parts(job.output).begin(wrong.identity())
    run(job, progress=False)
    check(job.output, expected)


def test_overwriting_removes_parts_of_another_job_and_keeps_its_own(job, expected):
    wrong = replace(job, options={"pooling": "cls"})
    with pytest.raises(KeyboardInterrupt):
        run(wrong, stopping(9), progress=False)
    with pytest.raises(UsageError, match="or --overwrite to begin anew"):
        run(job, progress=False)
    with pytest.raises(KeyboardInterrupt):
        run(job, stopping(9), overwrite=True, progress=False)
    parts = {file: file.stat().st_mtime_ns for file in job.output.parent.glob("*.parts/*.arrow")}
    seen = {}

    def engine(work, spans):
        seen.update({file: file.stat().st_mtime_ns for file in parts})
        yield from here(work, spans)

    run(job, engine, overwrite=True, progress=False)
    assert parts and seen == parts
    check(job.output, expected)


KILLED = """
import os, signal, sys
from pathlib import Path
from lowbit.jobs.job import Job
from lowbit.jobs.run import here, run

def engine(work, spans):
    for number, rows in enumerate(here(work, spans)):
        if len(list(work.parts.folder.glob("*.arrow"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield rows

data, model = map(Path, sys.argv[1:])
output = data.with_name("vectors.parquet")
run(Job(str(model), data, "text", output, tokens=64, part_rows=4), engine)
"""


@pytest.mark.slow
def test_a_job_that_was_killed_computes_no_part_again(job, model, expected):
    told = [sys.executable, "-c", KILLED, str(job.data), str(model)]
    assert subprocess.run(told).returncode == -signal.SIGKILL
    folder = job.output.with_name("vectors.parquet.parts")
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.arrow")}
    seen = {}

    def engine(work, spans):
        yield from here(work, spans)
        seen.update({file: file.stat().st_mtime_ns for file in folder.glob("*.arrow")})

    run(job, engine, progress=False)
    assert len(before) >= 2 and len(seen) == 9 and before.items() <= seen.items()
    check(job.output, expected)
    assert left(job) == ["docs.parquet", "vectors.parquet"]


BEGUN = """
import json, os, signal, sys
from pathlib import Path
from lowbit.jobs.parts import Parts

json.dumps = lambda _: os.kill(os.getpid(), signal.SIGKILL)
Parts(Path(sys.argv[1])).begin({})
"""


def test_a_job_that_was_killed_before_its_first_part_goes_on(job, expected):
    assert subprocess.run([sys.executable, "-c", BEGUN, job.output]).returncode == -signal.SIGKILL
    folder = job.output.with_name("vectors.parquet.parts")
    assert [file.name for file in folder.iterdir()] == [".job.json.lowbit"]
    run(job, progress=False)
    check(job.output, expected)
    assert left(job) == ["docs.parquet", "vectors.parquet"]


def test_a_folder_or_a_file_of_somebody_else_is_left_alone(job):
    folder = job.output.with_name("vectors.parquet.parts")
    folder.write_text("mine")
    with pytest.raises(InputError, match="vectors.parquet.parts cannot be created: File exists"):
        run(job, progress=False)
    assert folder.read_text() == "mine"
    folder.unlink()
    folder.mkdir()
    (folder / ".job.json.lowbit").mkdir()
    (folder / ".job.json.lowbit" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no parts"):
        run(job, progress=False)
    assert (folder / ".job.json.lowbit" / "mine").read_text() == "mine"


def test_another_job_does_not_go_on(job, model, tmp_path):
    def stop():
        with pytest.raises(KeyboardInterrupt):
            run(job, stopping(3), progress=False)

    stop()
    os.utime(job.data, ns=(0, 0))
    with pytest.raises(UsageError, match="another job, which differs in data: give"):
        run(job, progress=False)
    changed = Job(job.model, job.data, "text", job.output, options={"pooling": "cls"}, part_rows=4)
    with pytest.raises(UsageError, match="differs in data, options: give what that job had"):
        run(changed, progress=False)
    other = Job(str(save("bert", tmp_path / "other", seed=1)), job.data, "text", job.output)
    with pytest.raises(UsageError, match="differs in model, data, part size"):
        run(other, progress=False)
    folder = job.output.with_name("vectors.parquet.parts")
    (folder / "job.json").unlink()
    with pytest.raises(UsageError, match="is not empty and holds no parts"):
        run(job, progress=False)


@pytest.mark.parametrize("name", ["bert", "bert-classifier"])
def test_a_result_that_is_not_finite_is_told_with_its_row(job, tmp_path, name):
    """Token 7 of a text of its own gives NaN, in row 25 of the second row group."""
    net, tokenizer = make(name), byte_tokenizer()
    (token,) = set(tokenizer("z").input_ids) - set(tokenizer("ab").input_ids)
    with torch.no_grad():
        net.get_input_embeddings().weight[token] = torch.nan
    net.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    texts = ["ab"] * 25 + ["z"] + ["ab"] * 4
    pq.write_table(pa.table({"text": texts}), job.data, row_group_size=13)
    with pytest.raises(InputError, match="the model gives NaN or ∞ for row 25: its weights"):
        run(replace(job, model=str(tmp_path / name)), progress=False)
    assert not job.output.exists()
    with pytest.raises(InputError, match="for row 1: "):
        open_pipeline(tmp_path / name)([("ab",), ("z",)], 100)


@pytest.mark.parametrize(("name", "pair"), [("bert", None), ("bert-classifier", "other")])
def test_blank_cells_of_a_csv_have_no_result(job, tmp_path, name, pair):
    """Even if the tokenizer adds tokens of its own."""
    make(name).save_pretrained(tmp_path / name)
    words("who", "came").save_pretrained(tmp_path / name)
    data, output = tmp_path / "docs.csv", tmp_path / "out.jsonl"
    data.write_text('text,other\nwho,came\n,came\n"  ",came\ncame,who\n')
    found = run(Job(str(tmp_path / name), data, "text", output, pair=pair), progress=False)
    added = "label" if pair else "embedding"
    rows = [json.loads(line)[added] for line in output.read_text().splitlines()]
    assert [row is None for row in rows] == [False, True, True, False] and found.missing == 2


def test_a_broken_part_is_told_by_name(job):
    with pytest.raises(KeyboardInterrupt):
        run(job, stopping(5), progress=False)
    part = sorted(job.output.with_name("vectors.parquet.parts").glob("*.arrow"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{part.name} cannot be read"):
        run(job, progress=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"column": "txet"}, "column 'txet' is unknown; did you mean text"),
        ({"column": "id"}, "column id of .* holds int64, not text"),
        ({"keep": ("id", "nothing")}, "column 'nothing'"),
        ({"pair": "text"}, "embedding reads one text per row"),
        ({"kind": "classification"}, "BertModel does not classify"),
        ({"tokens": 0}, "tokens of a batch must be at least 1"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(job, change, told):
    fields = {name: getattr(job, name) for name in ("model", "data", "column", "output")}
    with pytest.raises(UsageError, match=told):
        run(Job(**{**fields, **change}), progress=False)
    assert left(job) == ["docs.parquet"]


def test_labels_of_words_are_one_column(tmp_path):
    BertForTokenClassification(BertConfig(**BERT)).eval().save_pretrained(tmp_path / "tagger")
    byte_tokenizer().save_pretrained(tmp_path / "tagger")
    data, output = tmp_path / "docs.csv", tmp_path / "out.csv"
    data.write_text('text\nab  ba b\n""\nb\n')
    run(Job(str(tmp_path / "tagger"), data, "text", output), progress=False)
    texts, labels = zip(*csv.reader(output.open(newline="")), strict=True)
    assert (texts[0], labels[0]) == ("text", "labels")
    assert [len(label.split()) for label in labels[1:]] == [3, 0, 1]


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("bert-classifier", ["label", "score"]),
        ("bart", ["translation"]),
        ("gpt2", ["generation"]),
    ],
)
def test_other_models_add_other_columns(tmp_path, name, added):
    folder = save(name, tmp_path / name)
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps({"id": n, "text": "ab" * n}) + "\n" for n in range(5)))
    options = {} if name == "bert-classifier" else {"max_new_tokens": 3}
    output = tmp_path / "out.jsonl"
    run(Job(str(folder), data, "text", output, options=options, keep=("id",)), progress=False)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(5))
    assert all(list(row) == ["id", *added] for row in rows)
    assert rows[0][added[0]] is None and rows[4][added[0]] is not None
    pipeline = open_pipeline(folder, **options)
    (wanted,) = pipeline([("abababab",)], 100)
    if name == "bert-classifier":
        assert rows[4]["label"] == pipeline.labels[int(wanted.argmax())]
        assert abs(rows[4]["score"] - wanted.max()) < 1e-5
    else:
        assert rows[4][added[0]] == wanted
