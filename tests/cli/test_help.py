"""`--help` of every verb: one summary line, and examples that run."""

import importlib
import re
import shlex
import subprocess
import sys
from inspect import getdoc
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from lowbit import quantize_checkpoint
from lowbit.cli import VERBS, _in_python, main
from tests.folders import save
from tests.models import make
from tests.small_tokenizers import words
from tests.test_docs_commands import FEW, NEW, TINY, write_data
from tests.training.test_squad import VOCABULARY

# What these need is made elsewhere: another project's files, a download, minutes, a client.
ELSEWHERE = ("demo", "import", "run -- lm_eval", "serve")
SMALL = {
    "compare": ["--shapes", "none", "--new-tokens", "2"],
    "report": ["--shapes", "none", "--new-tokens", "2"],
    "search": ["--samples", "2", "--max-size", "1MB"],
    "quantize --calibration": ["--samples", "2"],
    "infer": ["--max-length", "24"],
}


def told():
    """The help text of each verb, and of each task of train, by its name."""
    for verb in VERBS:
        module = importlib.import_module(f"lowbit.cli.{_in_python(verb)}")
        yield verb, getdoc(getattr(module, _in_python(verb)))
        if hasattr(module, "app"):
            for command in module.app.registered_commands:
                yield f"{verb} {command.name}", getdoc(command.callback)


def examples():
    for name, text in told():
        for found in re.findall(r"Example: `lowbit (.*?)`", text, re.DOTALL):
            yield name, " ".join(found.split())


@pytest.mark.parametrize(("name", "text"), list(told()))
def test_help_begins_with_one_line_and_has_an_example(name, text):
    first, second, *_ = text.split("\n")
    assert first.endswith(".") and not second, first
    assert any(example.startswith(f"{name.split()[0]} ") for _, example in examples())


@pytest.mark.parametrize(("name", "example"), list(examples()))
def test_an_example_names_options_that_exist(lowbit, name, example):
    verb = name.split()[0]
    if verb == "run":
        return
    asked = example.split()[:2] if verb == "train" else [verb]
    _, out, _ = lowbit(*asked, "--help")
    for option in re.findall(r"(?<= )--?[a-z][a-z-]*", example):
        assert option in out, option


def write_everything(folder):
    write_data(folder)
    save("gpt2", folder / "gpt2")
    save("llama-tied", folder / "llama")
    save("bart", folder / "out" / "float")
    make("bert-classifier").save_pretrained(folder / "classifier")
    for name in ("classifier", "bert-base"):
        if name == "bert-base":
            make("bert").save_pretrained(folder / name)
        words(*VOCABULARY).save_pretrained(folder / name)
    for source, recipe, out in (
        ("gpt2", "int4", "gpt2-int4"),
        ("llama", "int4", "llama-int4"),
        ("bert-base", "int4", "bert-base-int4"),
        ("classifier", "int8", "out/int8"),
        ("out/float", "bcq3-all", "out/bcq3-all"),
    ):
        quantize_checkpoint(str(folder / source), recipe, folder / out, progress=False)
    for name in ("test", "valid", "train", "wiki"):
        (folder / f"{name}.txt").write_text("who came then a of and " * 20)
    (folder / "valid.tsv").write_text("ba bo\tbo ba\n" * 4)
    pa.parquet.write_table(pa.table({"text": ["who came", "then"]}), folder / "docs.parquet")


def run_elsewhere(program, arguments, variables):
    """In place of `os.execvpe`: ends with the exit code of a new process."""
    python = [sys.executable if word == "python" else word for word in arguments]
    sys.exit(subprocess.run(python, env=variables).returncode)


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    write_everything(tmp_path)
    capsys.readouterr()  # transformers' bars, of what is written here
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setattr("os.execvpe", run_elsewhere)
    # The process that measures peak memory imports torch: seconds for each model.
    monkeypatch.setattr("lowbit.evaluation.record.peak_bytes", lambda folder: 400 << 20)
    (tmp_path / "script.py").write_text(
        "import sys, transformers\ntransformers.AutoModel.from_pretrained(sys.argv[1])"
    )
    ran = 0
    for name, example in dict.fromkeys(examples()):
        if example.startswith(ELSEWHERE):
            continue
        arguments = shlex.split(example.partition("<")[0])
        arguments += SMALL.get(name, [])
        if "--calibration" in arguments:
            arguments += SMALL.get(f"{name} --calibration", [])
        if arguments[0] == "train":
            new = shlex.split(NEW) if arguments[1] == "translation" else []
            arguments += [*FEW, *TINY[arguments[1]], *new, "--overwrite"]
        if "-o" in arguments:
            place = arguments.index("-o") + 1
            arguments[place] = f"./written{ran}{Path(arguments[place]).suffix}"
        monkeypatch.setattr(sys, "argv", ["lowbit", *arguments])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"ba bo da do\n")))
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr().err
        assert not stopped.value.code, f"{example}: {said[-500:]}"
        assert "it/s" not in said, f"{example} draws a bar without a terminal: {said[-500:]}"
        ran += 1
    assert ran > 15
