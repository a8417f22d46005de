"""A checkpoint that claims more than its files hold is refused before memory is taken for it."""

import json
import struct
import tracemalloc

import pytest
from torch import nn

from lowbit import InputError, quantize_checkpoint
from lowbit.checkpoint.claims import (
    FREE_MODULES,
    MODULES_PER_TENSOR,
    Held,
    describing,
    held_by,
)
from lowbit.checkpoint.load import load_model
from tests.models import make

CLAIMS = {
    ("gpt2", "vocab_size", 10**12): "more than",
    ("gpt2", "vocab_size", 10**9): "more than",
    ("gpt2", "n_positions", 10**9): "more than",
    ("gpt2", "n_layer", 10**9): "at most 1,048,576",
    ("gpt2", "n_layer", 10**4): "more than",
    ("gpt2", "n_inner", 10**9): "more than",
    ("llama-tied", "num_hidden_layers", 10**12): "at most 1,048,576",
    ("llama-tied", "num_hidden_layers", 10**4): "more than",
    ("bert-classifier", "num_labels", 10**9): "at most 1,048,576",
}


# Describing ten thousand layers takes seconds: those of one model by day.
NIGHTLY = ("llama-tied", "num_hidden_layers", 10**4)


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(c, marks=pytest.mark.nightly if c == NIGHTLY else (), id="-".join(map(str, c)))
        for c in CLAIMS
    ],
)
def test_a_config_that_asks_for_more_is_refused_at_once(claim, tmp_path):
    name, key, value = claim
    folder = tmp_path / "float"
    make(name).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=CLAIMS[claim]):
            load_model(folder)
        with pytest.raises(InputError, match=CLAIMS[claim]):
            quantize_checkpoint(folder, "int8", tmp_path / "out", progress=False)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "out").exists()


def test_modules_without_numbers_are_counted_too(tmp_path):
    held = Held(names=("a", "b"), elements=8)
    most = FREE_MODULES + 2 * MODULES_PER_TENSOR
    with describing(held, tmp_path):
        nn.ModuleList(nn.Identity() for _ in range(most))
    with pytest.raises(InputError, match="more than 20,128 modules.* 2 tensors"):
        with describing(held, tmp_path):
            nn.ModuleList(nn.Identity() for _ in range(most + 1))


def stored(header, data=b"", length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, end=4):
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (stored(entry([1]), b"\0" * 4, 2**63), "claims 9,223,372,036,854,775,808 of"),
        (stored(entry([1]), b"\0" * 4, 0), "claims 0 of"),
        (stored(entry([10**6, 10**6]), b"\0" * 4), "claims 1,000,000,000,000 numbers for a"),
        (stored(entry([-1]), b"\0" * 4), "has no shape"),
        (stored(entry("x"), b"\0" * 4), "has no shape"),
        (stored([1]), "header is not valid"),
        (b"\x08\0\0\0\0\0\0\0" + b"[" * 8, "header is not valid"),
        (b"", "is empty"),
        (b"abc", "claims 0 of 3 bytes"),
    ],
)
def test_a_header_that_claims_more_than_its_file_is_refused(written, told, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(written)
    with pytest.raises(InputError, match=told):
        held_by([file], quantized=False)
