"""What blocks hold becomes a quantized tensor and blocks again, and no weight changes."""

import numpy as np
import pytest
import torch

from lowbit.errors import InputError
from lowbit.formats import AffineLayout, TwoLevel, decode, group
from lowbit.formats.granularity import CHANNEL, TENSOR
from lowbit.interop.gguf.blocks import TYPES, pack, unpack
from lowbit.interop.gguf.grids import LAYOUTS, from_blocks, to_blocks, type_for
from lowbit.schemes import Absmax, ZeroPoint
from tests.interop.gguf.random_blocks import random_blocks

gguf = pytest.importorskip("gguf", reason="the package gguf is absent")


def blocks(name):
    raw = random_blocks(name)
    if name == "Q8_0":  # whose steps are never negative
        raw = raw.reshape(-1, TYPES[name].bytes)
        raw[:, 1] &= 0x7F
        raw[0, :2] = 0
        raw = raw.reshape(3, -1)
    return raw


@pytest.mark.parametrize("name", TYPES)
def test_weights_of_blocks_are_those_of_gguf_bit_for_bit(name):
    raw = blocks(name)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    q = from_blocks(unpack(TYPES[name], torch.from_numpy(raw)), name)
    assert q.layout == LAYOUTS[name]
    np.testing.assert_array_equal(decode(q).numpy(), expected)


@pytest.mark.parametrize("name", [name for name in TYPES if name != "Q8_0"])
def test_blocks_come_back_bit_for_bit(name):
    raw = torch.from_numpy(blocks(name))
    q = from_blocks(unpack(TYPES[name], raw), name)
    assert type_for(q.layout, raw.shape[1] * 256, None) == name
    assert torch.equal(pack(TYPES[name], to_blocks(q, name)), raw)


# A scheme, and the smallest type that holds what it makes.
HELD = [
    (Absmax(8), "Q8_0"),
    (Absmax(8, TENSOR), "Q8_0"),
    (Absmax(8, group(64)), "Q8_0"),
    (Absmax(5, group(32)), "Q5_0"),
    (Absmax(4, CHANNEL), "Q4_0"),
    (Absmax(3, group(96)), "Q4_0"),
    (ZeroPoint(3, group(64)), "Q4_0"),
    (ZeroPoint(4, group(64)), "Q5_0"),
    (ZeroPoint(5, group(32)), "Q8_0"),
]


@pytest.mark.parametrize(("scheme", "expected"), HELD)
def test_a_scheme_goes_into_the_smallest_type_that_holds_it_exactly(scheme, expected):
    weight = torch.randn(5, 96)
    q = scheme.quantize(weight)
    name = type_for(q.layout, 96)
    assert name == expected
    raw = pack(TYPES[name], to_blocks(q, name)).numpy()
    found = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(found, decode(q).numpy())


@pytest.mark.parametrize(
    ("layout", "columns", "wanted", "told"),
    [
        (AffineLayout(8, group(32), True), 64, None, "not what any type"),
        (AffineLayout(4, group(16), False), 64, None, "not a multiple of 32"),
        (AffineLayout(4, group(32), False), 48, None, "48 inputs"),
        (AffineLayout(4, group(32), False, torch.float32), 64, None, "float32"),
        (AffineLayout(5, group(32), False), 64, "Q4_0", "not what Q4_0 holds"),
        (AffineLayout(4, group(32), False), 64, "Q4_1", "not what Q4_1 holds"),
        (
            AffineLayout(4, group(32), False, two_level=TwoLevel(5, True)), 256, None, "two-level",
        ),
    ],
)  # fmt: skip
def test_a_layout_that_no_type_holds_is_refused(layout, columns, wanted, told):
    with pytest.raises(InputError, match=told):
        type_for(layout, columns, wanted)
