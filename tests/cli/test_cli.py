"""The command line as its user sees it: output, exit codes, one sentence per error."""

import importlib
import inspect
import json
import subprocess
import sys

import pytest

from lowbit import Absmax, Recipe, Rule
from lowbit.cli import VERBS, _described, _in_python
from lowbit.inspect import speed
from lowbit.qat.prepare import finish_qat
from lowbit.qat.projection import prepare_codes
from tests.models import make


@pytest.fixture
def source(tmp_path):
    make("gpt2").save_pretrained(tmp_path / "float")
    return tmp_path / "float"


def test_quantize_prints_coverage_and_a_before_after_table(lowbit, source, tmp_path):
    code, out, err = lowbit("quantize", source, "--recipe", "int4", "-o", tmp_path / "out")
    assert code == 0
    for words in ("Conv1D: rule @linear", "keeps @embedding", "tied to transformer.wte"):
        assert words in out, words
    assert "bits per weight" in out and "on disk" in out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_quantize_json_is_one_object_with_everything(lowbit, source, tmp_path):
    code, out, err = lowbit("quantize", source, "-o", tmp_path / "out", "--json")
    result = json.loads(out)
    assert code == 0 and not err
    assert result["recipe"]["name"] == "int4-head8-dynamic"
    assert result["notes"][0].startswith("Recipe int4-head8-dynamic was chosen, ")
    assert result["coverage"]["share"] > 0.5
    assert result["after"]["disk_bytes"] < result["before"]["disk_bytes"]
    assert len(result["errors"]) == 10


def test_quantize_without_a_recipe_says_which_was_chosen_and_why(lowbit, source, tmp_path):
    code, out, _ = lowbit("quantize", source, "-o", tmp_path / "out")
    assert code == 0 and "by recipe int4-head8-dynamic" in " ".join(out.split())
    assert "note: Recipe int4-head8-dynamic was chosen, the default for models that gener" in out


def test_quiet_prints_nothing(lowbit, source, tmp_path):
    assert lowbit("quantize", source, "-o", tmp_path / "out", "--quiet") == (0, "", "")


def test_a_yaml_recipe_is_taken(lowbit, source, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(Recipe((Rule("*.c_fc", Absmax(6)),), name="mine").to_yaml())
    code, out, _ = lowbit("quantize", source, "--recipe", file, "-o", tmp_path / "out", "--json")
    assert code == 0 and json.loads(out)["recipe"]["name"] == "mine"


def test_quantize_and_inspect_say_what_is_slower_than_float32(
    lowbit, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(speed, "MATTERS", 1)
    monkeypatch.setattr(speed, "_times", lambda *_: {1: 0.5, 256: 7.0})
    code, out, _ = lowbit("quantize", source, "--recipe", "bcq3", "-o", tmp_path / "out")
    assert code == 0 and "note: 8 layers (binary 3-bit group:64, float activations) are" in out
    code, out, _ = lowbit("quantize", source, "--recipe", "bcq3", "--dry-run")
    assert code == 0 and "note: 8 layers (binary 3-bit group:64, float activations) are" in out
    code, out, _ = lowbit("inspect", source)
    assert code == 0 and "bcq3-all: 9 layers (binary 3-bit group:64, float activations) are" in out
    code, out, _ = lowbit("inspect", tmp_path / "out")
    assert code == 0 and "7.00 times as long for 256 rows" in out
    code, out, _ = lowbit("inspect", tmp_path / "out", "--json")
    assert len(json.loads(out)["slow"]) == 1


def test_a_kernel_that_cannot_run_is_a_note_once_the_folder_is_written(
    lowbit, source, tmp_path, monkeypatch
):
    monkeypatch.setenv("LOWBIT_KERNEL", "avx3")
    monkeypatch.setattr(speed, "MATTERS", 1)
    code, out, err = lowbit("quantize", source, "--recipe", "int4", "-o", tmp_path / "out")
    assert code == 0 and not err and (tmp_path / "out" / "model.safetensors").is_file()
    assert "note: Speeds were not measured: LOWBIT_KERNEL=avx3" in out and "written to" in out


def test_inspect_shows_every_module_and_the_totals(lowbit, source, tmp_path):
    out_folder = tmp_path / "out"
    lowbit("quantize", source, "--recipe", "int4-all-dynamic", "-o", out_folder, "-q")
    code, out, _ = lowbit("inspect", out_folder, "--json")
    inspection = json.loads(out)
    assert code == 0
    modules = {m["name"]: m for m in inspection["modules"]}
    c_fc = modules["transformer.h.0.mlp.c_fc"]
    assert c_fc["stored_as"] == "affine 4-bit group:64, dynamic int8 activations"
    assert c_fc["signal_to_noise_db"] > 10 and c_fc["kernel"] and c_fc["why"]
    assert modules["lm_head"]["stored_as"] == "tied to transformer.wte"
    assert inspection["resident_bytes_after_forward"] <= 1.1 * inspection["resident_bytes"]
    code, out, _ = lowbit("inspect", out_folder)
    assert code == 0 and "resident after a forward pass" in out
    assert c_fc["kernel"] in out


@pytest.mark.parametrize("name", ["bert-classifier", "bart", "t5", "llama-tied", "distilbert"])
def test_inspect_runs_every_architecture(name, lowbit, tmp_path):
    make(name).save_pretrained(tmp_path / "float")
    lowbit("quantize", tmp_path / "float", "--recipe", "int8-all", "-o", tmp_path / "out", "-q")
    code, out, err = lowbit("inspect", tmp_path / "out", "--json")
    assert code == 0 and not err
    assert json.loads(out)["bits_per_weight"] < 12


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["quantize", "{source}", "--recipe", "int5", "-o", "{out}"], 2, "'int5' is unknown"),
        (["quantize", "{source}", "--recipe", "no.yaml", "-o", "{out}"], 2, "cannot be read"),
        (["quantize", "{source}", "--recipe", "int8-static", "-o", "{out}"], 2, "calibration"),
        (["quantize", "{source}", "-o", "{source}"], 2, "holds the model"),
        (["quantize", "./nowhere", "-o", "{out}"], 1, "there is no folder"),
        (["quantize", "{source}/config.json", "-o", "{out}"], 1, "is a file"),
        (["quantize", "{source}", "-o", "{source}/config.json"], 2, "is a file"),
        (["quantize", "{source}", "-o", "/proc/none/out"], 1, "cannot be"),
        (["inspect", "{source}", "--verify"], 1, "lowbit"),
        (["inspect", "./nowhere"], 1, "there is no folder"),
        (["quantize", "{source}"], 2, "--output"),
        (["quantize", "{source}", "-o", "{out}", "--max-shard-size", "0"], 2, "max-shard-size"),
        (["quantise"], 2, "quantise"),
    ],
)
def test_an_error_is_one_sentence_on_standard_error(
    arguments, code, sentence, lowbit, source, tmp_path
):
    out_folder = tmp_path / "out"
    arguments = [a.format(source=source, out=out_folder) for a in arguments]
    got, out, err = lowbit(*arguments)
    assert got == code and sentence in err and "Traceback" not in err
    assert not out and not out_folder.exists()


def test_brackets_in_an_error_are_printed_as_they_are(lowbit, tmp_path):
    code, _, err = lowbit("inspect", "/[red]nowhere[/red]")
    assert code == 1 and "/[red]nowhere[/red]" in err


@pytest.mark.parametrize("command", [[], ["quantize"], ["inspect"], ["demo"]])
def test_help_has_an_example(command, lowbit):
    code, out, _ = lowbit(*command, "--help")
    assert code == 0
    assert not command or "Example" in out


def test_the_list_of_verbs_has_the_help_of_each(lowbit):
    for verb in VERBS:
        module = importlib.import_module(f"lowbit.cli.{_in_python(verb)}")
        own = inspect.getdoc(getattr(module, _in_python(verb)))
        assert _described(verb).__doc__ == own
        first = " ".join(own.split("\n\n")[0].split())
        assert first[:40] in " ".join(lowbit("--help")[1].split()), verb


def test_python_dash_m_runs_it():
    done = subprocess.run(
        [sys.executable, "-m", "lowbit", "--help"], capture_output=True, text=True, check=True
    )
    for verb in ("quantize", "inspect", "demo"):
        assert verb in done.stdout


def test_inspect_says_trained_of_weights_that_became_their_codes(lowbit, tmp_path):
    model = make("bert")
    for weight in prepare_codes(model, "bcq2-all"):
        weight.project()
        weight.settle()
    finish_qat(model, progress=False)
    model.save_pretrained(tmp_path)
    code, out, _ = lowbit("inspect", tmp_path)
    assert code == 0 and "inf" not in out
    rows = [line for line in out.splitlines() if "binary 2-bit" in line]
    assert rows and all(" trained " in row for row in rows)
    assert "Infinity" not in lowbit("inspect", tmp_path, "--json")[1]
