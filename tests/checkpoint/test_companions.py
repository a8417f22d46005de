"""What lies beside the weights may be written by anybody: it travels, or it is one sentence."""

import os
from pathlib import Path

import pytest

from lowbit import InputError
from lowbit.checkpoint.companions import copy_companions
from lowbit.checkpoint.documents import MOST_JSON

MAKERS = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.fixture
def source(tmp_path):
    """A folder with a module, into which a test puts what it likes."""
    (tmp_path / "source" / "2_Dense").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_config_that_is_no_file_is_not_opened(kind, source, monkeypatch):
    """Opening a pipe waits for somebody to write, and /dev/zero does not end: never without care."""
    MAKERS[kind](source / "2_Dense" / "config.json")
    (source / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path.name} was opened"))
    copy_companions(source, source.parent / "out")
    travelled = [path.name for path in (source.parent / "out").rglob("*") if path.is_file()]
    assert travelled == ["tokenizer.json"]


def test_a_config_that_is_too_long_is_one_sentence(source):
    with (source / "2_Dense" / "config.json").open("wb") as opened:
        opened.truncate(MOST_JSON + 1)
    with pytest.raises(InputError, match="config.json has 67,108,865 bytes; at most 67,108,864"):
        copy_companions(source, source.parent / "out")
