"""The blocks of ONNX's operators decode to the weights that lowbit's codes stand for."""

import numpy as np
import pytest
import torch

from lowbit.formats import CHANNEL, TENSOR, AffineLayout, decode, group
from lowbit.interop.onnx.blocks import block_width, to_blocks
from lowbit.schemes import Absmax, ZeroPoint


def meant(blocks):
    """W, from the schema of MatMulNBits, by NumPy alone."""
    codes, scale = blocks.codes.numpy(), blocks.scale.numpy()
    low_first = [(codes >> shift) & ((1 << blocks.bits) - 1) for shift in range(0, 8, blocks.bits)]
    each = np.stack(low_first, -1).reshape(*codes.shape[:2], -1).astype(np.float32)
    zero = np.float32(1 << (blocks.bits - 1))
    if blocks.zero_point is not None:
        zero = blocks.zero_point.numpy().astype(np.float32)[..., None]
    weight = (each - zero) * scale[..., None]
    return weight.reshape(len(codes), -1)[:, : blocks.columns]


@pytest.mark.parametrize("columns", [64, 100, 192])
@pytest.mark.parametrize("granularity", [group(64), group(48), group(16), CHANNEL, TENSOR], ids=str)
@pytest.mark.parametrize("scheme", [Absmax, ZeroPoint])
@pytest.mark.parametrize("bits", range(2, 9))
def test_blocks_decode_to_the_same_weight(bits, scheme, granularity, columns):
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(bits))
    q = scheme(bits, granularity).quantize(weight)
    blocks = to_blocks(q)
    assert blocks.bits in (2, 4, 8) and blocks.width >= 16
    np.testing.assert_array_equal(meant(blocks), decode(q).numpy())


@pytest.mark.parametrize(
    ("granularity", "columns", "width"),
    [
        (group(64), 100, 64),
        (group(96), 192, 32),
        (group(24), 96, None),
        (group(8), 96, None),
        (CHANNEL, 768, 256),
        (CHANNEL, 100, 16),
        (TENSOR, 96, 32),
    ],
)
def test_a_block_divides_a_group_and_is_a_power_of_two(granularity, columns, width):
    layout = AffineLayout(4, granularity, True)
    assert block_width(layout, columns) == width
