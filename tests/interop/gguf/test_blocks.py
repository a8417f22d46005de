"""Blocks of GGUF hold what gguf's own dequantization finds in them, and come back bit for bit."""

import numpy as np
import pytest
import torch

from lowbit.interop.gguf.blocks import TYPES, decode, pack, unpack

gguf = pytest.importorskip("gguf", reason="the package gguf is absent")


def random_blocks(name: str, rows: int = 3, blocks: int = 2) -> np.ndarray:
    """Every bit random, but for the float16 numbers, which are finite."""
    kind = TYPES[name]
    generator = np.random.default_rng(kind.number)
    raw = generator.integers(0, 256, (rows, blocks, kind.bytes), dtype=np.uint8)
    at = 0
    for field, size in kind.fields.items():
        if field in ("d", "m"):
            halves = generator.normal(size=(rows, blocks, 1)).astype(np.float16)
            raw[..., at : at + size] = halves.view(np.uint8)
        at += size
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("name", TYPES)
def test_numbers_and_sizes_of_types_are_those_of_gguf(name: str) -> None:
    known = gguf.GGMLQuantizationType[name]
    assert TYPES[name].number == known
    assert (TYPES[name].weights, TYPES[name].bytes) == gguf.GGML_QUANT_SIZES[known]


@pytest.mark.parametrize("name", TYPES)
def test_decoded_blocks_are_those_of_gguf_bit_for_bit(name: str) -> None:
    raw = random_blocks(name)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    found = decode(TYPES[name], unpack(TYPES[name], torch.from_numpy(raw))).numpy()
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", TYPES)
def test_packing_inverts_unpacking_bit_for_bit(name: str) -> None:
    raw = torch.from_numpy(random_blocks(name))
    assert torch.equal(pack(TYPES[name], unpack(TYPES[name], raw)), raw)
