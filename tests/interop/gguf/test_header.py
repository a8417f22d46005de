"""A header says what gguf's own reader finds, or the file is refused in one sentence."""

import random
import struct

import numpy as np
import pytest
import torch

from lowbit.errors import InputError
from lowbit.interop.gguf.blocks import TYPES
from lowbit.interop.gguf.header import read_header
from lowbit.interop.gguf.writer import NewTensor, write_file

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.rope.freq_base": 1e4,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["<s>", "größe"],
    "tokenizer.ggml.scores": [0.0, -1.0],
    "tokenizer.ggml.token_type": [3, 1],
}
SIZES = {0: (1, 4), 1: (1, 2), TYPES["Q4_0"].number: (32, 18)}


@pytest.fixture
def file(tmp_path):
    to = tmp_path / "model.gguf"
    blocks = torch.arange(2 * 2 * 18, dtype=torch.uint8)
    tensors = [
        NewTensor("blk.0.ffn_up.weight", "Q4_0", (2, 64), lambda: blocks),
        NewTensor("output_norm.weight", "F32", (3,), lambda: torch.ones(3)),
    ]
    write_file(to, METADATA, tensors)
    return to


def test_a_written_file_is_read_by_gguf(file):
    gguf = pytest.importorskip("gguf", reason="the package gguf is absent")
    reader = gguf.GGUFReader(file)
    assert {key: reader.fields[key].contents() for key in METADATA} == METADATA
    first, second = reader.tensors
    assert (first.name, list(first.shape)) == ("blk.0.ffn_up.weight", [64, 2])
    np.testing.assert_array_equal(first.data.ravel(), np.arange(72))
    assert second.data.tolist() == [1, 1, 1]


def test_a_header_says_what_was_written(file):
    header = read_header(file, SIZES)
    scalars = {key: value for key, value in METADATA.items() if not isinstance(value, list)}
    assert scalars.items() <= header.metadata.items()
    assert header.metadata["tokenizer.ggml.tokens"] == 2
    tensor = header.tensors["blk.0.ffn_up.weight"]
    assert (tensor.shape, tensor.bytes) == ((2, 64), 72)
    assert file.read_bytes()[tensor.start :][:72] == bytes(range(72))


def hostile(stored: bytes, old: bytes, new: bytes) -> bytes:
    assert old in stored
    return stored.replace(old, new, 1)


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


NAME = b"blk.0.ffn_up.weight"
TENSOR = NAME + struct.pack("<IQQIQ", 2, 64, 2, 2, 0)
TOKENS = b"tokenizer.ggml.tokens" + struct.pack("<IIQ", 9, 8, 2)
FAULTS = {
    "no magic": (b"GGUF", b"GGML", "begins with"),
    "version 1": (struct.pack("<I", 3), struct.pack("<I", 1), "version 1"),
    "big-endian": (struct.pack("<I", 3), struct.pack(">I", 3), "version 50,331,648"),
    "a trillion tensors": (number(2) + number(7), number(10**12) + number(7), "1,000,000,000,000"),
    "more keys than bytes": (number(2) + number(7), number(2) + number(60_000), "60,000 keys"),
    "a key of 2^63 bytes": (number(20), number(1 << 63), "a name of"),
    "a text beyond the file": (number(5) + b"llama", number(10_000) + b"llama", "a text"),
    "a text that is no UTF-8": (b"gr\xc3\xb6", b"gr\xff\xff", "UTF-8"),
    "2^60 texts": (TOKENS, TOKENS[:-8] + number(1 << 60), "an array of"),
    "an array of arrays": (
        TOKENS, TOKENS[:-12] + struct.pack("<IQ", 9, 2), "array of arrays",
    ),
    "an unknown kind of value": (TOKENS, TOKENS[:-16] + struct.pack("<IIQ", 77, 8, 2), "type 77"),
    "a key twice": (b"tokenizer.ggml.scores", b"tokenizer.ggml.tokens", "twice"),
    "a count beyond any model": (
        b"block_count" + struct.pack("<II", 4, 1),
        b"block_count" + struct.pack("<II", 4, 1 << 31),
        "block_count = 2,147,483,648",
    ),
    "9 dimensions": (NAME + struct.pack("<I", 2), NAME + struct.pack("<I", 9), "9 dimensions"),
    "no columns": (TENSOR, NAME + struct.pack("<IQQIQ", 2, 0, 2, 2, 0), "the shape"),
    "a shape that overflows": (
        TENSOR, NAME + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 2, 0), "the shape",
    ),
    "half a block": (TENSOR, NAME + struct.pack("<IQQIQ", 2, 48, 2, 2, 0), "rows of 48"),
    "an unknown type": (TENSOR, NAME + struct.pack("<IQQIQ", 2, 64, 2, 99, 0), "type 99"),
    "a tensor beyond the file": (
        TENSOR, NAME + struct.pack("<IQQIQ", 2, 64, 2, 2, 1 << 50), "claims 72",
    ),
    "more weights than bytes": (
        TENSOR, NAME + struct.pack("<IQQIQ", 2, 64, 1 << 30, 2, 0), "claims",
    ),
    "an odd offset": (TENSOR, NAME + struct.pack("<IQQIQ", 2, 64, 2, 2, 7), "claims 72"),
    "two tensors in one place": (
        struct.pack("<IQIQ", 1, 3, 0, 96), struct.pack("<IQIQ", 1, 3, 0, 64), "share bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hostile_header_is_refused_in_one_sentence(file, fault):
    old, new, told = FAULTS[fault]
    file.write_bytes(hostile(file.read_bytes(), old, new))
    with pytest.raises(InputError, match=told) as caught:
        read_header(file, SIZES)
    assert "\n" not in str(caught.value)


def test_whatever_bytes_are_cut_or_changed_is_read_or_refused(file):
    whole = file.read_bytes()
    start = read_header(file, SIZES).tensors["blk.0.ffn_up.weight"].start
    generator = random.Random(0)
    for cut in range(0, len(whole), 3):
        file.write_bytes(whole[:cut])
        with pytest.raises(InputError):
            read_header(file, SIZES)
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(start)] = generator.choice((0, 1, 9, 127, 255))
        file.write_bytes(changed)
        try:
            read_header(file, SIZES)
        except InputError as error:
            assert len(str(error)) < 600


def test_an_array_that_would_become_millions_of_objects_is_refused(tmp_path):
    metadata = {"general.architecture": "llama", "many": bytes(3 << 20)}
    write_file(tmp_path / "model.gguf", metadata, [])
    with pytest.raises(InputError, match="arrays of 3,145,728 items; 2,097,152 are read"):
        read_header(tmp_path / "model.gguf", SIZES)


@pytest.mark.parametrize("value", ["two", 2.5, True])
def test_a_count_that_is_none_is_told(value, tmp_path):
    write_file(tmp_path / "model.gguf", {"general.architecture": "llama", "split.count": value}, [])
    header = read_header(tmp_path / "model.gguf", SIZES)
    assert header.count("llama.block_count") == 0
    with pytest.raises(InputError, match=rf"split.count = '?{value}'?, which is not a count"):
        header.count("split.count")
