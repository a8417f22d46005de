"""What lies beside the weights may be written by anybody: it travels, or it is one sentence."""

import os
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
    """Opening a pipe waits for somebody to write, and /dev/zero does not end."""
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


@pytest.fixture
def pickled(source):
    """Where older sentence-transformers keep the weights of a module."""
    (source / "2_Dense" / "config.json").write_text("{}")
    return source / "2_Dense" / "pytorch_model.bin"


def refused(pickled, told):
    source = pickled.parents[1]
    with pytest.raises(InputError, match=told) as found:
        copy_companions(source, source.parent / "out")
    assert "\n" not in str(found.value) and str(pickled) in str(found.value)
    assert not list((source.parent / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "stored",
    [
        {1: torch.ones(2)},
        {"w": torch.ones(2), "epoch": 3},
        {"w": torch.ones(2, 2).to_sparse()},
        {"w": torch.ones(2, device="meta")},
        {"w": torch.ones(2, dtype=torch.complex128)},
        [torch.ones(2)],
        torch.ones(2),
        None,
    ],
    ids=["number", "value", "sparse", "meta", "complex", "list", "tensor", "none"],
)
def test_a_pickle_of_anything_but_tensors_by_name_is_refused(stored, pickled):
    torch.save(stored, pickled)
    refused(pickled, "not a pickle of plain tensors")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("archive", [True, False])
def test_a_damaged_pickle_is_read_or_refused_in_one_sentence(archive, pickled):
    """Changed bytes make torch raise a dozen kinds of exceptions."""
    torch.save({"w": torch.ones(2, 2)}, pickled, _use_new_zipfile_serialization=archive)
    whole, chance = pickled.read_bytes(), random.Random(0)
    sentences = 0
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        pickled.write_bytes(damaged[: chance.randrange(len(whole)) if number % 4 == 0 else None])
        try:
            copy_companions(pickled.parents[1], pickled.parents[2] / "out")
        except InputError as error:
            assert str(pickled) in str(error)
            sentences += 1
    assert sentences > 20


def test_a_small_file_of_many_numbers_is_refused(pickled):
    """4 GB in memory: one number that stands for all, and zeros that are compressed."""
    torch.save({"w": torch.ones(1).expand(1 << 20, 1 << 10)}, pickled)
    assert pickled.stat().st_size < 2000
    refused(pickled, "is a pickle of 4,294,967,296 bytes, of which at most 500,000,000 are read")
    with zipfile.ZipFile(pickled, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/0", "w") as opened:
            for _ in range(501):
                opened.write(bytes(10**6))
    assert pickled.stat().st_size < 10**6
    refused(pickled, "is a pickle of 501,000,000 bytes, of which at most 500,000,000 are read")


def test_names_of_one_tensor_and_views_of_it_become_tensors_of_their_own(pickled):
    whole = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    torch.save({"a": whole, "b": whole, "c": whole.detach().T, "d": whole[1].detach()}, pickled)
    copy_companions(pickled.parents[1], pickled.parents[2] / "out")
    stored = load_file(pickled.parents[2] / "out" / "2_Dense" / "model.safetensors")
    expected = {"a": whole, "b": whole, "c": whole.T, "d": whole[1]}
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
