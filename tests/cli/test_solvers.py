"""`lowbit quantize` with a solver and a calibration text."""

import json

import pytest
import torch

from lowbit import dequantize
from lowbit.checkpoint.load import load_model
from lowbit.solvers import sequential as walk
from tests.models import make, output
from tests.small_tokenizers import words


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "float"
    make("gpt2").save_pretrained(folder)
    words(*(f"w{i}" for i in range(150))).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{i * 7 % 150}" for i in range(400)))
    return file


@pytest.mark.parametrize(
    ("recipe", "solver"),
    [("int4", "gptq"), ("int8-static", "nearest"), ("int8-all-static", "smoothquant")],
)
def test_a_text_calibrates_and_the_folder_loads(recipe, solver, lowbit, source, text, tmp_path):
    out = tmp_path / "out"
    options = ["--solver", solver, "--calibration", text, "--samples", 20, "--length", 16]
    code, printed, err = lowbit("quantize", source, "--recipe", recipe, "-o", out, *options)
    assert code == 0, err
    assert "on disk" in printed and f"written to {out}" in printed
    expected = output(make("gpt2"))
    assert ((output(load_model(out)) - expected).norm() <= 0.3 * expected.norm()).item()
    assert {"tokenizer.json", "README.md", "model.safetensors"} <= {f.name for f in out.iterdir()}
    assert sorted(f.name for f in tmp_path.iterdir()) == ["float", "out", "text.txt"]


def test_fewer_samples_are_said_and_json_has_the_notes(lowbit, source, text, tmp_path):
    options = ["--solver", "gptq", "--calibration", text, "--length", 32, "--json"]
    code, printed, _ = lowbit(
        "quantize", source, "--recipe", "int4", "-o", tmp_path / "o", *options
    )
    found = json.loads(printed)
    assert code == 0
    assert "has 12 windows of 32 tokens; 128 samples were requested" in found["notes"][0]
    assert found["after"]["disk_bytes"] < found["before"]["disk_bytes"]


def test_hqq_needs_no_text(lowbit, source, tmp_path):
    code, _, _ = lowbit(
        "quantize", source, "--recipe", "int3", "--solver", "hqq", "-o", tmp_path / "out"
    )
    assert code == 0 and torch.isfinite(output(load_model(tmp_path / "out"))).all()


def test_heads_are_rotated_where_that_is_asked_for(lowbit, source, text, tmp_path):
    options = ["--recipe", "int8", "--calibration", text, "--length", 16, "-q"]
    code, _, err = lowbit("quantize", source, "-o", tmp_path / "out", *options, "--rotate")
    assert code == 0, err
    found, expected = load_model(tmp_path / "out"), make("gpt2")
    assert ((output(found) - output(expected)).norm() <= 0.05 * output(expected).norm()).item()
    rotated, plain = (model.transformer.h[0].attn.c_proj for model in (found, expected))
    away = dequantize(rotated.stored_weight) - plain.weight.t()
    assert (away.norm() > 0.5 * plain.weight.norm()).item()


def test_the_same_command_goes_on_after_a_kill(lowbit, source, text, tmp_path, monkeypatch):
    solve, calls = walk._solve, []

    def killed(playback, reference, stage, *options):
        if calls == ["transformer.h.0"]:
            raise SystemExit(143)
        calls.append(stage.name)
        return solve(playback, reference, stage, *options)

    options = ["--recipe", "int4", "--solver", "gptq", "--calibration", text, "--samples", 9]
    command = ["quantize", source, "-o", tmp_path / "out", *options, "-q"]
    monkeypatch.setattr(walk, "_solve", killed)
    assert lowbit(*command)[0] == 143
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.solving").is_dir()
    calls.clear()
    assert lowbit(*command)[0] == 0
    assert calls == ["transformer.h.1"]
    assert not (tmp_path / ".out.solving").exists()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--solver", "gptq"], 2, "solver gptq learns from data: give calibration data"),
        (["--rotate"], 2, "rotate learns from data: give calibration data (--calibration FILE)"),
        (["--recipe", "int8-static"], 2, "give calibration data (--calibration FILE), or train"),
        (["--tune", "2"], 2, "tune learns from data: give calibration data"),
        (["--solver", "magic"], 2, "solver 'magic' is unknown"),
        (["--calibration", "{text}"], 2, "needs no data"),
        (["--samples", "9"], 2, "--samples says how a text is read: give a --calibration"),
        (["--length", "9"], 2, "--length says how a text is read: give a --calibration"),
        (["--solver", "gptq", "--calibration", "no.txt"], 1, "no.txt cannot be read"),
        (["--solver", "gptq", "--calibration", "{text}", "--length", "99"], 2, "outside 2 … 64"),
    ],
)
def test_an_error_is_one_sentence(options, code, sentence, lowbit, source, text, tmp_path):
    options = [option.format(text=text) for option in options]
    got, printed, err = lowbit("quantize", source, "-o", tmp_path / "out", *options)
    assert got == code and sentence in err and "Traceback" not in err
    assert not printed and not (tmp_path / "out").exists()
