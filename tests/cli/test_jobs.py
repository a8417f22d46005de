"""`lowbit embed` and `lowbit infer` on tables, as their user sees them."""

import json
import socket

import pytest

from tests.folders import save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save("bert", tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def docs(tmp_path):
    file = tmp_path / "docs.csv"
    file.write_text("id,body\n1,who came\n2,\n3," + "ab" * 60 + "\n")
    return file


def test_embed_says_what_it_wrote_and_what_it_cut(lowbit, model, docs, tmp_path):
    output = tmp_path / "vectors.jsonl"
    asked = ("embed", model, "--data", docs, "--column", "body", "--keep", "id", "-o", output)
    code, out, err = lowbit(*asked)
    assert (code, err) == (0, "")
    assert "vectors.jsonl, 3 rows" in out
    assert "1 row with more tokens than the model reads: cut." in out
    assert "1 row without text: no result." in out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert [row["embedding"] is None for row in rows] == [False, True, False]
    code, _, err = lowbit(*asked)
    assert code == 2 and "--overwrite replaces it" in err
    assert lowbit(*asked, "--overwrite", "--quiet") == (0, "", "")


def test_infer_writes_tabs(lowbit, docs, tmp_path):
    folder = save("bert-classifier", tmp_path / "classifier")
    output = tmp_path / "labels.tsv"
    code, _, err = lowbit("infer", folder, "--data", docs, "--column", "body", "-o", output)
    assert code == 0, err
    assert output.read_text().splitlines()[0] == '"id"\t"body"\t"label"\t"score"'


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--engine", "spark"), "engine 'spark' is unknown: use local or ray"),
        (("--workers", 2), "--workers and --threads are of --engine ray"),
        (("--keep", "id,title"), "column 'title' is unknown"),
        (("--pooling", "median"), "pooling 'median' is unknown"),
    ],
)
def test_embed_refuses_what_cannot_be(lowbit, model, docs, tmp_path, more, told):
    asked = ("embed", model, "--data", docs, "--column", "body", "-o", tmp_path / "v.jsonl")
    code, _, err = lowbit(*asked, *more)
    assert code == 2 and told in err


def test_infer_tells_benchmarks_and_tables_apart(lowbit, docs, tmp_path):
    folder = save("bert-classifier", tmp_path / "classifier")
    output = tmp_path / "labels.csv"
    asked = ("infer", folder, "--data", docs, "-o", output)
    assert lowbit(*asked, "--column", "body")[0] == 0
    head, *rows = output.read_text().splitlines()
    assert head == '"id","body","label","score"' and len(rows) == 3
    for more, told in (
        (("--split", "dev"), "--split is of the benchmarks"),
        (("--task", "summary"), "task 'summary' is unknown"),
        (("--task", "glue", "--keep", "id"), "--keep is of tables"),
        (("--task", "glue", "--stride", 4), "--stride is of --task squad"),
        (("--task", "squad", "--name", "mrpc"), "--name is of --task glue"),
        (("--name", "mrpc"), "--name is of --task glue"),
        (("--beams", 2, "--overwrite", "--column", "body"), "--beams is not an option of classi"),
    ):
        code, _, err = lowbit(*asked, *more)
        assert code == 2 and told in err


def test_serve_refuses_what_it_cannot_serve(lowbit, model, tmp_path, monkeypatch):
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason=f"the service needs the package {package}")
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    decoder = save("gpt2", tmp_path / "gpt2")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for more, code, told in (
            ((decoder, "--port", 0), 2, f"lowbit run -- transformers serve {decoder}"),
            ((model, "--port", port), 1, f"127.0.0.1:{port} cannot be listened to"),
            ((model, "--queue", 5), 2, "a queue of 5 rows cannot hold a request of 1024"),
            ((model, "--workers", 0), 2, "workers must be at least 1"),
            ((model, "--port", 0, "--beams", 2), 2, "--beams is not an option of embedding"),
        ):
            found, _, err = lowbit("serve", *more)
            assert found == code and told in err
    monkeypatch.setenv("LOWBIT_API_KEY", "")
    assert "the API key is empty" in lowbit("serve", model)[2]
