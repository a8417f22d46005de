"""eval, report and compare as their user sees them."""

import json

import pytest
import torch

import lowbit as library
from lowbit.evaluation.study import Study
from tests.folders import save
from tests.models import make

TEXT = "a text that is long enough to predict, and then a little longer than that. " * 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save("gpt2", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def quantized(source):
    library.quantize_checkpoint(str(source), "int4", source.parent / "int4", progress=False)
    return source.parent / "int4"


@pytest.fixture(scope="module")
def text(source):
    (source.parent / "text.txt").write_text(TEXT)
    return source.parent / "text.txt"


@pytest.fixture(autouse=True)
def _no_process_of_its_own(monkeypatch):
    monkeypatch.setattr("lowbit.evaluation.record.peak_bytes", lambda folder: 1 << 20)


def test_eval_prints_metrics_sizes_and_speed(lowbit, source, quantized, text):
    code, out, err = lowbit(
        "eval", quantized, "--against", source, "--task", "perplexity", "--data", text,
        "--shapes", "1x8",
    )  # fmt: skip
    assert code == 0, err
    for words in ("perplexity", "KL divergence", "top-1 agreement", "bits per weight"):
        assert words in out, words
    assert "tokens per second" in out
    assert "int4" in out and "tiny" in out and "1 × 8" in out


def test_eval_json_is_a_study(lowbit, source, quantized, text):
    code, out, err = lowbit(
        "eval", quantized, "--against", source, "--task", "perplexity", "--data", text, "--json"
    )
    assert code == 0 and not err
    study = Study.from_dict(json.loads(out))
    assert [model.name for model in study.models] == ["tiny", "int4"]
    assert study.commands[0].startswith("lowbit eval ")
    assert study.models[1].measurements[0].metrics["KL divergence"].value > 0


def test_the_seed_is_that_of_the_samples(lowbit, source):
    def sample(seed):
        options = ("--task", "generate", "--text", "a text", "--new-tokens", "8", "--json")
        code, out, err = lowbit("eval", source, *options, "--seed", seed)
        assert code == 0, err
        (measurement,) = Study.from_dict(json.loads(out)).models[0].measurements
        assert measurement.settings["seed"] == seed
        return measurement.samples[0].output

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_report_writes_every_form_that_is_asked_for(
    lowbit,
    source,
    quantized,
    text,
    tmp_path,
):
    outputs = [tmp_path / f"report.{suffix}" for suffix in ("html", "md", "json")]
    arguments = [part for output in outputs for part in ("-o", output)]
    code, out, err = lowbit(
        "report", quantized, "--against", source, "--task", "perplexity", "--data", text,
        "--shapes", "none", *arguments,
    )  # fmt: skip
    assert code == 0, err
    assert "smaller" in out and all(f"written: {output}" in out for output in outputs)
    page = outputs[0].read_text(encoding="utf-8")
    assert "<svg" in page and "int4" in page
    assert Study.load(outputs[2]).models[1].modules


def test_compare_quantizes_measures_and_reports(lowbit, source, text, tmp_path):
    output = tmp_path / "report.html"
    arguments = (
        "compare", source, "--recipes", "int8, bcq2", "--task", "perplexity", "--data", text,
        "--shapes", "none", "-o", output,
    )  # fmt: skip
    code, out, err = lowbit(*arguments)
    assert code == 0, err
    assert "bcq2" in output.read_text(encoding="utf-8")
    assert (tmp_path / "report.models" / "bcq2" / "model.safetensors").is_file()
    assert "the models stay in" in out
    (tmp_path / "report.models" / "bcq2" / "model.safetensors").unlink()
    # All is on record: nothing is made again.
    assert lowbit(*arguments)[0] == 0
    assert not (tmp_path / "report.models" / "bcq2" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["eval", "{source}", "--task", "perplexit", "--data", "{text}"], 2, "task 'perplexit' is"),
        (["eval", "{source}", "--task", "squad"], 2, "needs the option 'data'"),
        (["eval", "{source}", "--task", "perplexity", "--data", "no.txt"], 1, "no.txt"),
        (["eval", "{source}", "--task", "perplexity"], 2, "give either data or text"),
        (["eval", "{source}", "--task", "perplexity", "--text", "a", "--beams", "2"], 2, "'beams'"),
        (["eval", "{source}", "--task", "glue", "--name", "mrpc", "--data", "{text}"], 2, "GLUE"),
        (["eval", "{source}", "--task", "glue", "--data", "{text}"], 2, "option 'subset' (--name)"),
        (["eval", "{source}", "--data", "{text}"], 2, "give a --task"),
        (["eval", "{source}", "--shapes", "1x999"], 2, "999 tokens do not fit"),
        (["eval", "nowhere/at/all"], 1, "there is no folder"),
        (["report", "{source}", "--against", "{source}", "-o", "r.pdf"], 2, "r.pdf"),
        (["compare", "{source}", "--recipes", "int9", "-o", "{out}.html"], 2, "'int9' is unknown"),
    ],
)
def test_a_mistake_gets_one_sentence(
    lowbit,
    source,
    text,
    tmp_path,
    arguments,
    code,
    sentence,
):
    places = {"source": source, "text": text, "out": tmp_path / "out"}
    found, out, err = lowbit(*(argument.format(**places) for argument in arguments))
    assert found == code and sentence in err, err
    assert "Traceback" not in err and err.count("\n") <= 4


def test_a_damaged_model_has_a_perplexity_of_nan_and_no_samples(lowbit, text, tmp_path):
    folder, broken = save("gpt2", tmp_path / "broken"), make("gpt2")
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(torch.nan)
    broken.save_pretrained(folder)
    code, out, err = lowbit("eval", folder, "--task", "perplexity", "--data", text, "--json")
    assert code == 0, err
    (found,) = json.loads(out)["models"][0]["measurements"]
    assert found["metrics"]["perplexity"]["value"] == "nan" and not found["samples"]
    code, _, err = lowbit("eval", folder, "--task", "generate", "--text", "who came")
    assert code == 1 and f"a text of {folder} cannot be generated" in err


def test_infer_writes_predictions_in_the_form_of_glue(lowbit, tmp_path):
    source = save("bert-classifier", tmp_path / "bert")
    (tmp_path / "RTE").mkdir()
    rows = ["index\tsentence1\tsentence2", "0\tone\ttwo", "1\tthree\tfour"]
    (tmp_path / "RTE" / "test.tsv").write_text("\n".join(rows) + "\n")
    code, out, err = lowbit(
        "infer", source, "--task", "glue", "--name", "rte", "--data", tmp_path, "-o",
        tmp_path / "RTE.tsv",
    )  # fmt: skip
    assert code == 0, err
    lines = (tmp_path / "RTE.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 3
    assert all(line.split("\t")[1] in ("entailment", "not_entailment") for line in lines[1:])


def test_infer_asks_for_its_folder_before_the_work(lowbit, tmp_path):
    # No model either, which would be told next.
    given = ("infer", tmp_path, "--task", "glue", "--name", "rte", "--data", tmp_path)
    code, _, err = lowbit(*given, "-o", tmp_path / "absent" / "RTE.tsv")
    assert code == 2 and "RTE.tsv has no folder to go into" in err
    code, _, err = lowbit(*given, "-o", tmp_path)
    assert code == 2 and "would replace a folder" in err
    (tmp_path / "RTE.tsv").write_text("mine")
    code, _, err = lowbit(*given, "-o", tmp_path / "RTE.tsv")
    assert code == 2 and "RTE.tsv exists (--overwrite replaces it)" in err
    code, _, err = lowbit(*given, "-o", tmp_path / "RTE.tsv", "--overwrite")
    assert code == 1 and (tmp_path / "RTE.tsv").read_text() == "mine"
