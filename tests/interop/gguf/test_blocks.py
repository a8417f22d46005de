"""Blocks of GGUF hold what gguf's own dequantization finds in them, and come back bit for bit."""

import numpy as np
import pytest
import torch

from lowbit.interop.gguf.blocks import TYPES, decode, pack, unpack
from tests.interop.gguf.random_blocks import random_blocks

gguf = pytest.importorskip("gguf", reason="the package gguf is absent")


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
