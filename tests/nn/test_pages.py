"""Pages of files that packed weights leave behind."""

import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lowbit
from lowbit.kernels import native
from lowbit.nn import quant_module
from lowbit.nn.pages import page_out
from tests.models import make

MIB = 1 << 20


def resident_pages_of_files():
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux takes pages back")
def test_pages_go_and_their_contents_stay(tmp_path):
    wanted = torch.randint(0, 255, (64, MIB), dtype=torch.uint8)
    save_file({"x": wanted}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        x = file.get_tensor("x")
    assert torch.equal(x, wanted)
    read = resident_pages_of_files()
    page_out(x)
    assert resident_pages_of_files() < read - 32 * MIB
    assert torch.equal(x, wanted)


def test_any_tensor_may_be_given():
    for x in (torch.ones(0), torch.ones(3), torch.ones(999, 999), torch.ones(9, 999_999).T):
        wanted = x.clone()
        page_out(x)
        assert torch.equal(x, wanted)


@pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
def test_what_was_loaded_is_let_go_when_it_is_packed_and_nothing_else(tmp_path, monkeypatch):
    gone = []
    monkeypatch.setattr(quant_module, "page_out", gone.append)
    model = make("bert")
    lowbit.quantize(model, "int8", progress=False)
    ids = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        wanted = model(**ids)[0]
        assert gone == []
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(**ids)[0], wanted)
        assert len(gone) > 4
        gone.clear()
        loaded.state_dict()
        assert torch.equal(loaded(**ids)[0], wanted)
    assert gone == []
