"""The commands in the pages on training run, on tiny data and for a few steps."""

import json
import re
import shlex
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from lowbit.cli import main
from tests.folders import byte_tokenizer
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
    blocks = re.findall(r"```\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ lowbit ") for line in lines if line.startswith("$ lowbit ")]


def tiny(command):
    """The arguments, with what makes them quick."""
    arguments = shlex.split(command.partition("<")[0])
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
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    found = commands(page)
    assert len(found) >= 5
    for command in found:
        monkeypatch.setattr(sys, "argv", ["lowbit", *tiny(command)])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"ba bo da do\n")))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, f"{command}: {capsys.readouterr().err[-500:]}"
