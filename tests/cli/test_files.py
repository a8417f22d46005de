"""Files of others, and damaged ones, on the command line: a sentence that no terminal obeys."""

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowbit import InputError, UsageError, quantize, quantize_checkpoint, save
from lowbit.cli.failure import without_debug
from lowbit.cli.screen import Screen
from tests import folders

# Everything that a terminal takes for an order, and what reorders the text after it.
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]not red[/red] [/x] :smile: \u202e\x9b2J"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folders.save("gpt2", tmp_path_factory.mktemp("files") / "float")


@pytest.fixture(scope="module")
def stored(source):
    out = source.with_name("int8")
    quantize_checkpoint(source, "int8", out, progress=False)
    return out


@pytest.mark.parametrize("verb", ["eval", "inspect", "report", "compare", "quantize", "infer"])
def test_every_verb_says_whose_a_model_of_another_quantizer_is(verb, lowbit, source, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    page, out = ("-o", tmp_path / "page.html"), ("-o", tmp_path / "out")
    more = {
        "report": ("--against", folder, *page),
        "compare": page,
        "quantize": out,
        "infer": ("--task", "glue", "--name", "mrpc", "--data", tmp_path, *out),
    }
    code, _, err = lowbit(verb, folder, *more.get(verb, ()))
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "already quantized (gptq, by GPTQModel or AutoGPTQ)" in err
    assert "quantize the float model" in err


@pytest.mark.parametrize("verb", ["inspect", "eval", "quantize"])
def test_every_verb_says_what_reads_a_module_that_is_no_transformers_model(verb, lowbit, tmp_path):
    module = nn.Sequential(nn.Linear(64, 64))
    quantize(module, "int8", progress=False)
    save(module, tmp_path / "module")
    more = ("-o", tmp_path / "out") if verb == "quantize" else ()
    code, _, err = lowbit(verb, tmp_path / "module", *more)
    assert code == 1 and err.count("\n") == 1 and "lowbit.load(module, folder) reads it" in err


def test_inspect_verifies_on_request(lowbit, stored):
    code, out, _ = lowbit("inspect", stored, "--verify")
    assert code == 0 and "tensors and config.json are what lowbit wrote" in out
    assert json.loads(lowbit("inspect", stored, "--verify", "--json")[1])["verified"] > 20
    file = stored / "model.safetensors"
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert lowbit("inspect", stored, "-q")[0] == 0
        code, _, err = lowbit("inspect", stored, "--verify")
    finally:
        file.write_bytes(before)
    assert code == 1 and "is damaged: " in err


@given(st.text())
def test_nothing_that_is_printed_orders_the_terminal_about(text):
    screen = Screen(width=4000, force_terminal=False)
    with screen.capture() as printed:
        screen.print(text, soft_wrap=True)
    assert not OBEYED.search(printed.get())


def test_an_error_in_python_is_text_too():
    for kind in (InputError, UsageError):
        assert not OBEYED.search(str(kind(HOSTILE))) and "not red" in str(kind(HOSTILE))
    assert str(InputError("one\ntwo\t√")) == "one\ntwo\t√"


def test_text_is_printed_as_it_is():
    screen = Screen(width=200, force_terminal=False)
    with screen.capture() as printed:
        screen.print(HOSTILE, soft_wrap=True)
    shown = printed.get()
    assert "[red]not red[/red] [/x] :smile:" in shown
    assert (
        "[U+001B][2J[U+001B]]0;owned[red]" in shown
    )  # rich itself leaves out bells and "[U+202E][U+009B]2J" in shown


@pytest.mark.parametrize("verb", ["inspect", "eval", "quantize"])
def test_a_folder_of_any_name_is_printed_as_text(verb, lowbit, source, stored, tmp_path):
    name = HOSTILE.replace("/", "|")
    (tmp_path / name).symlink_to(source if verb == "quantize" else stored)
    out = ("-o", tmp_path / f"{name}.out", "--json") if verb == "quantize" else ()
    code, printed, err = lowbit(verb, tmp_path / name, *out)
    assert code == 0 and not OBEYED.search(printed + err)
    if verb == "quantize":
        card = (tmp_path / f"{name}.out" / "README.md").read_text()
        assert not OBEYED.search(card)
    missing = lowbit(verb, tmp_path / f"no{name}", *out)
    assert missing[0] == 1 and not OBEYED.search(missing[2]) and missing[2].count("\n") == 1


def test_an_error_that_nobody_expected_is_a_sentence_too(lowbit, stored, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("of\x1b[2J nothing\nat all")

    monkeypatch.setattr("lowbit.inspect.checkpoint.inspect_checkpoint", fail)
    code, _, err = lowbit("inspect", stored)
    assert code == 1 and err.count("\n") == 1 and "Traceback" not in err
    assert "ZeroDivisionError" in err and str(stored) in err and "--debug" in err
    for arguments in (("--debug", "inspect", stored), ("inspect", stored, "--debug")):
        code, _, err = lowbit(*arguments)
        assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")


def test_debug_of_another_program_stays_its_own():
    assert without_debug(["run", "--", "x", "--debug"]) == (["run", "--", "x", "--debug"], False)
    assert without_debug(["--debug", "run", "x", "--debug"]) == (["run", "x", "--debug"], True)
    assert without_debug(["eval", "--debug", "m"]) == (["eval", "m"], True)


@pytest.mark.slow
def test_a_command_reads_no_pipe_and_no_device(stored, tmp_path):
    (tmp_path / "model").mkdir()
    for file in stored.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer.json").symlink_to("/dev/zero")
    command = [sys.executable, "-m", "lowbit", "eval", str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "tokenizer.json is a device; only regular files are read" in done.stderr
