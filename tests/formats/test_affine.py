import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import InputError, UsageError
from lowbit.formats import CHANNEL, TENSOR, AffineLayout, Granularity, group, layout_from_dict
from lowbit.formats.affine import AffineTensor, decode, encode, take_rows
from tests.oracles import affine as oracle
from tests.oracles import packing
from tests.oracles.granularity import units


@st.composite
def stored_tensors(draw, min_rows=0):
    """An AffineTensor of random codes, and (codes, scale, zero point) as NumPy numbers."""
    bits, symmetric = draw(st.integers(2, 8)), draw(st.booleans())
    rows, columns = draw(st.integers(min_rows, 5)), draw(st.integers(1, 40))
    size = draw(st.sampled_from(["tensor", "channel"]) | st.integers(2, 45))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = units((rows, columns), size)[0]
    signed = symmetric and bits == 8
    codes = random.integers(0, 1 << bits, (rows, columns)) - (128 if signed else 0)
    scale = random.uniform(0.01, 2, shape).astype(draw(st.sampled_from([np.float16, np.float32])))
    zero = random.integers(0, 1 << bits, shape).astype(np.uint8)
    codes = codes.astype(np.int8 if signed else np.uint8)
    q = AffineTensor(
        codes=torch.from_numpy(codes if signed else packing.pack(codes, bits)),
        scale=torch.from_numpy(scale),
        zero_point=None if symmetric else torch.from_numpy(zero),
        bits=bits,
        granularity=Granularity.parse(size if isinstance(size, str) else f"group:{size}"),
        in_features=columns,
    )
    implied = np.zeros_like(zero, np.int64) + (0 if signed else 1 << (bits - 1))
    return q, size, codes, scale, implied if symmetric else zero


@given(stored_tensors(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_decode_equals_numpy(case, dtype):
    q, size, codes, scale, zero = case
    s = oracle.spread(scale.astype(np.float32), codes.shape, size)
    wanted = s * (codes - oracle.spread(zero.astype(np.float32), codes.shape, size))
    weight = decode(q, dtype)
    assert weight.dtype == dtype
    assert torch.equal(weight, torch.from_numpy(wanted).to(dtype).reshape(q.shape))


@given(stored_tensors(min_rows=1), st.data())
def test_rows_taken_and_then_decoded_equal_rows_of_the_decoded(case, data):
    q = case[0]
    rows = torch.tensor(data.draw(st.lists(st.integers(0, q.shape[0] - 1))), dtype=torch.int64)
    assert torch.equal(decode(take_rows(q, rows)), decode(q)[rows])
    assert torch.equal(decode(take_rows(q, slice(1, None))), decode(q)[1:])


@given(stored_tensors())
def test_a_layout_tells_shapes_and_dtypes_and_puts_the_tensor_together_again(case):
    q = case[0]
    layout = layout_from_dict(q.layout.to_dict())
    assert layout == q.layout
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in q.tensors().items()}
    assert layout.tensors(*q.shape) == shapes
    again = layout.assemble(q.tensors(), q.in_features)
    assert again.layout == layout and torch.equal(decode(again), decode(q))


@given(stored_tensors())
def test_encoding_what_was_decoded_gives_the_same_codes(case):
    q = case[0]
    again = encode(decode(q), q.scale, q.zero_point, q.bits, q.granularity, -(1 << q.bits - 1))
    assert torch.equal(again.codes, q.codes)


def test_values_outside_the_range_are_clamped_to_the_last_code():
    weight, one = torch.tensor([[-1e30, 1e30, 0.0]]), torch.ones(1, 1)
    assert decode(encode(weight, one, None, 4, CHANNEL)).tolist() == [[-7, 7, 0]]
    assert decode(encode(weight, one, None, 4, CHANNEL, lowest=-8)).tolist() == [[-8, 7, 0]]
    zero_point = torch.full((1, 1), 3, dtype=torch.uint8)
    assert decode(encode(weight, one, zero_point, 4, CHANNEL)).tolist() == [[-3, 12, 0]]


def test_eight_bit_codes_with_a_zero_point_are_one_byte_each():
    layout = AffineLayout(8, TENSOR, zero_point=True)
    assert not layout.signed and layout.tensors(3, 5) == {
        "codes": ((3, 5), torch.uint8),
        "scale": ((1, 1), torch.float16),
        "zero_point": ((1, 1), torch.uint8),
    }


@pytest.mark.parametrize("bits", [-1, 0, 1, 9])
def test_bits_outside_2_to_8_are_a_usage_error(bits):
    with pytest.raises(UsageError, match=f"bits {bits} is outside 2 … 8"):
        AffineLayout(bits, CHANNEL, zero_point=False)


GOOD = AffineLayout(4, group(64), zero_point=True).to_dict()


@pytest.mark.parametrize(
    "stored, message",
    [
        (GOOD | {"format": "float"}, "format 'float' is unknown: use affine, binary"),
        ({}, "format 'None' is unknown"),
        ({k: v for k, v in GOOD.items() if k != "bits"}, "not complete or valid"),
        (GOOD | {"scale_dtype": "float64"}, "not complete or valid"),
        (GOOD | {"bits": "4"}, "not complete or valid"),
        (GOOD | {"zero_point": "false"}, "not complete or valid"),
        (GOOD | {"format": ["affine"]}, "is unknown"),
        (GOOD | {"bits": None}, "not complete or valid"),
    ],
)
def test_a_stored_layout_that_is_not_one_is_an_input_error(stored, message):
    with pytest.raises(InputError, match=message):
        layout_from_dict(stored)


@pytest.mark.parametrize(
    "change, message",
    [({"bits": 9}, "bits 9 is outside"), ({"granularity": "group:1"}, "group size 1 is outside")],
)
def test_a_stored_layout_out_of_range_says_what_is(change, message):
    with pytest.raises(UsageError, match=message):
        layout_from_dict(GOOD | change)
