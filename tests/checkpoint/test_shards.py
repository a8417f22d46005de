"""Shards: bounded, complete, indexed."""

import errno
import json
import re

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lowbit import InputError
from lowbit.checkpoint.atomic_write import staged
from lowbit.checkpoint.documents import reading
from lowbit.checkpoint.shards import ShardWriter


@pytest.mark.parametrize("limit", [1, 100, 1000, 10**9])
def test_all_tensors_come_back_from_shards_within_the_limit(limit, tmp_path):
    tensors = {f"t{i}": torch.randn(10, i + 1) for i in range(9)}
    writer = ShardWriter(tmp_path, limit)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
        held = sum(t.nbytes for t in writer.pending.values())
        assert held <= max(limit, tensor.nbytes)
    writer.close()
    read = {}
    for file in sorted(tmp_path.glob("*.safetensors")):
        part = load_file(file)
        assert len(part) == 1 or sum(t.nbytes for t in part.values()) <= limit
        read |= part
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    index = tmp_path / "model.safetensors.index.json"
    if limit == 10**9:
        assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors"]
    else:
        stored = json.loads(index.read_text())
        assert stored["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        for name, file in stored["weight_map"].items():
            assert name in load_file(tmp_path / file)


def test_a_transposed_view_is_written_as_it_reads(tmp_path):
    tensor = torch.randn(3, 5).t()
    writer = ShardWriter(tmp_path, 1000)
    writer.add("t", tensor)
    writer.close()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["t"], tensor)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        OSError(errno.ENOSPC, "No space left"),
    ],
)
def test_a_full_disk_names_the_output_and_says_what_to_do(error, tmp_path, monkeypatch):
    """As safetensors and Python tell it; a real disk is in test_killed.py."""

    def full(*_, **__):
        raise error

    monkeypatch.setattr("lowbit.checkpoint.shards.save_file", full)
    told = f"{tmp_path}/out cannot be written: No space left on device; free space there"
    with pytest.raises(InputError, match=f"^{re.escape(told)}"), staged(tmp_path / "out") as new:
        writer = ShardWriter(new, 1000)
        writer.add("t", torch.zeros(2))
        # What is read at the same time is not to blame.
        with reading("the model"):
            writer.close()
    assert not list(tmp_path.iterdir())
