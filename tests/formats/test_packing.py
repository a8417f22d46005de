import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.formats.packing import pack, packed_width, unpack
from tests.oracles import packing as oracle


@st.composite
def rows_of_codes(draw):
    bits = draw(st.integers(1, 8))
    shape = (*draw(st.lists(st.integers(0, 3), max_size=2)), draw(st.integers(1, 40)))
    seed = draw(st.integers(0, 2**32))
    return bits, np.random.default_rng(seed).integers(0, 1 << bits, shape, np.uint8)


def tensor(codes):
    """A copy with torch's own strides, which NumPy's differ from where there are no rows."""
    return torch.zeros(codes.shape, dtype=torch.uint8).copy_(torch.from_numpy(codes))


@given(rows_of_codes())
def test_packed_rows_equal_bit_strings_made_by_numpy(case):
    bits, codes = case
    packed = pack(tensor(codes), bits)
    assert packed.dtype == torch.uint8 and packed.is_contiguous()
    assert packed.shape[-1] == packed_width(codes.shape[-1], bits)
    np.testing.assert_array_equal(packed.numpy(), oracle.pack(codes, bits))


@given(rows_of_codes())
def test_unpack_equals_numpy_and_inverts_pack(case):
    bits, codes = case
    n = codes.shape[-1]
    packed = pack(tensor(codes), bits)
    codes_again = unpack(packed, bits, n)
    np.testing.assert_array_equal(codes_again.numpy(), codes)
    np.testing.assert_array_equal(codes_again.numpy(), oracle.unpack(packed.numpy(), bits, n))


@pytest.mark.parametrize("bits", range(1, 9))
def test_pad_bits_are_zero(bits):
    packed = pack(torch.full((2, 5), (1 << bits) - 1, dtype=torch.uint8), bits)
    row = int.from_bytes(bytes(packed[0].tolist()), "little")
    assert row == (1 << 5 * bits) - 1


@pytest.mark.parametrize("bits", range(1, 9))
def test_strided_codes_pack_as_contiguous_ones(bits):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (24, 18), dtype=torch.uint8, generator=generator)
    strided = codes.t()[::2]
    packed = pack(strided, bits)
    np.testing.assert_array_equal(packed.numpy(), oracle.pack(strided.numpy(), bits))
    wide = torch.zeros(packed.shape[0], 2 * packed.shape[1], dtype=torch.uint8)
    wide[:, ::2] = packed
    np.testing.assert_array_equal(unpack(wide[:, ::2], bits, 24).numpy(), strided.numpy())


def test_three_bits_run_on_across_bytes():
    codes = torch.tensor([[1, 5, 6, 4]], dtype=torch.uint8)
    assert pack(codes, 3).tolist() == [[0b10_101_001, 0b0000_100_1]]
