"""The commands in pages run: those on training on tiny data and for a few steps, those on other
programs with tiny models."""

import json
import os
import re
import shlex
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

import lowbit
from lowbit.cli import main
from tests.evaluation.test_lm_eval import write_task
from tests.folders import byte_tokenizer, save
from tests.models import make
from tests.small_tokenizers import words
from tests.training import reversing
from tests.training.test_squad import VOCABULARY, paragraph

DOCS = Path(__file__).parent.parent / "docs"
FEW = ["--max-steps", "2", "--epochs", "1"]
# What makes each task tiny; of options that are given twice the last counts.
TINY = {
    "glue": ["--max-length", "24"],
    "squad": ["--max-length", "24"],
    "token-classification": ["--max-length", "24"],
    "language": ["--max-length", "16", "--batch-size", "2"],
    "translation": ["--max-length", "24"],
}
NEW = "--vocabulary 275 --layers 1 --width 64 --feed-forward 64 --heads 2"


def commands(page):
    """The lines after "$ lowbit", continued ones joined, in order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.M)
    lines = "\n".join(text for kind, text in blocks if not kind).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ lowbit ") for line in lines if line.startswith("$ lowbit ")]


def tiny(command):
    """The arguments, with what makes them quick."""
    arguments = shlex.split(command.partition("<")[0], comments=True)
    verb = arguments[0]
    if verb == "infer" and "squad" in arguments:
        return [*arguments, "--max-length", "24"]
    if verb != "train":
        return arguments
    task, is_new = arguments[1], arguments[2].startswith("-")
    return [*arguments, *FEW, *TINY[task], *(shlex.split(NEW) if is_new else [])]


def write_data(folder):
    make("bert").save_pretrained(folder / "bert")
    words(*VOCABULARY).save_pretrained(folder / "bert")
    make("gpt2").save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    for name in ("MRPC", "squad", "conll", "text"):
        (folder / name).mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{n % 2}\t1\t2\twho came\tthen {VOCABULARY[n % 7]}" for n in range(12)]
        head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        (folder / "MRPC" / f"{split}.tsv").write_text("\n".join([head, *rows]) + "\n")
    for split in ("train", "dev"):
        stored = {"data": [{"paragraphs": [paragraph(n) for n in range(8)]}]}
        (folder / "squad" / f"{split}-v1.1.json").write_text(json.dumps(stored))
    for split in ("train", "valid"):
        (folder / "conll" / f"{split}.txt").write_text("who B-PER\ncame O\n\n" * 8)
        (folder / "text" / f"{split}.txt").write_text("who came then a of and " * 20)
    reversing.write(folder / "spa-eng", train=60, valid=6)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["training.md", "translation.md"])
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = commands(page)
    assert len(found) >= 5
    run_all(found, monkeypatch, capsys)


def run_all(found, monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    # The process that measures peak memory imports torch: seconds for each model.
    monkeypatch.setattr("lowbit.evaluation.record.peak_bytes", lambda folder: 400 << 20)
    for command in found:
        monkeypatch.setattr(sys, "argv", ["lowbit", *tiny(command)])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"ba bo da do\n")))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, f"{command}: {capsys.readouterr().err[-500:]}"


@pytest.mark.slow
def test_the_commands_of_the_page_on_onnx_run(tmp_path, monkeypatch, capsys):
    for package in ("onnxscript", "transformers.exporters"):
        pytest.importorskip(package, reason=f"onnx.md needs {package}")
    monkeypatch.chdir(tmp_path)
    (save("bert", Path("minilm")) / "modules.json").write_text("[]")
    save("gpt2", "gpt2")
    for model, recipe in (("minilm", "int8"), ("minilm", "int8-dynamic"), ("gpt2", "int4")):
        lowbit.quantize_checkpoint(f"./{model}", recipe, f"./{model}-{recipe}", progress=False)
    found = commands("onnx.md")
    assert len(found) == 4
    run_all(found, monkeypatch, capsys)
    assert sorted(str(file) for file in Path().rglob("*.onnx")) == [
        "gpt2-onnx/model.onnx",
        "minilm-onnx/model.onnx",
        "minilm-st/onnx/model.onnx",
        "minilm-vnni/model.onnx",
    ]


@pytest.mark.nightly
def test_the_command_of_the_page_on_peft_runs(tmp_path):
    for package in ("peft", "lm_eval"):
        pytest.importorskip(package, reason=f"peft.md's command needs {package}")
    write_task(tmp_path, tmp_path / "gpt2-int4", "int4", adapter=tmp_path / "adapter")
    (command,) = commands("peft.md")
    local = command.replace("lambada_openai", f"continuation --include_path {tmp_path}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        [sys.executable, "-m", "lowbit", *shlex.split(local)],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "continuation" in ended.stdout and "perplexity" in ended.stdout
