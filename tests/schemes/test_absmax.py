import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import UsageError
from lowbit.formats import CHANNEL, TENSOR, Granularity, group
from lowbit.formats.affine import decode
from lowbit.schemes import Absmax
from tests.oracles import affine as oracle
from tests.oracles import packing
from tests.weights import units_of, weights

BITS = st.integers(2, 8)


def granularity(size):
    return Granularity.parse(size if isinstance(size, str) else f"group:{size}")


def half_steps(q, weight, size, tolerance=1e-4):
    """(error, half a step) of every weight in float64, the step a little larger for rounding."""
    scale = oracle.spread(q.scale.numpy().astype(np.float64), weight.shape, size)
    error = np.abs(decode(q).double().numpy() - weight.double().numpy())
    return error, scale * (0.5 + tolerance)


@given(weights(), BITS, st.data(), st.sampled_from(["absmax", "minmax"]))
def test_scales_and_codes_equal_numpys(weight, bits, data, reach):
    size = data.draw(units_of(weight))
    q = Absmax(bits, granularity(size), reach).quantize(weight)
    scale, codes = oracle.symmetric(weight.float().numpy(), bits, size, reach)
    assert q.scale.numpy().dtype == scale.dtype and q.zero_point is None
    np.testing.assert_array_equal(q.scale.numpy(), scale)
    stored = codes if bits == 8 else packing.pack(codes, bits)
    assert q.codes.numpy().dtype == stored.dtype
    np.testing.assert_array_equal(q.codes.numpy(), stored)


@given(weights(), BITS, st.data())
def test_absmax_error_is_at_most_half_a_step(weight, bits, data):
    size = data.draw(units_of(weight))
    error, bound = half_steps(Absmax(bits, granularity(size)).quantize(weight), weight, size)
    assert (error <= bound).all()


@given(weights(), BITS, st.data())
def test_minmax_error_is_at_most_half_a_step_where_nothing_clips(weight, bits, data):
    size = data.draw(units_of(weight))
    q = Absmax(bits, granularity(size), "minmax").quantize(weight)
    error, bound = half_steps(q, weight, size)
    unclipped = oracle.quotients(weight.float().numpy(), q.scale.numpy(), size)
    held = (unclipped >= -(1 << bits - 1)) & (unclipped <= (1 << bits - 1) - 1)
    assert (error <= bound)[held].all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_minmax_step_is_finer_by_the_empty_side(bits):
    weight = torch.tensor([[0.0, 0.25, 1.0]])
    absmax, minmax = Absmax(bits).quantize(weight), Absmax(bits, range="minmax").quantize(weight)
    assert absmax.scale.item() == pytest.approx(1 / (2 ** (bits - 1) - 1), rel=1e-3)
    assert minmax.scale.item() == pytest.approx(1 / (2**bits - 1), rel=1e-3)
    # The largest weight needs the code 2^b − 1 and gets 2^(b−1) − 1.
    largest = decode(minmax)[0, 2].item()
    assert largest == pytest.approx((2 ** (bits - 1) - 1) * minmax.scale.item())


def test_a_group_of_zeros_has_scale_one_and_decodes_to_zeros():
    weight = torch.tensor([[0.0, 0.0, 3.5, -7.0]])
    q = Absmax(4, group(2)).quantize(weight)
    assert q.scale.tolist() == [[1.0, 1.0]]
    assert decode(q).tolist() == [[0.0, 0.0, 4.0, -7.0]]


def test_per_tensor_there_is_one_scale():
    weight = torch.tensor([[1.0, -2.0], [127.0, 0.5]])
    q = Absmax(granularity=TENSOR).quantize(weight)
    assert q.scale.tolist() == [[1.0]] and q.codes.tolist() == [[1, -2], [127, 0]]


NORMAL_ERRORS = {8: (0.000059, 0.000035), 4: (0.0195, 0.0116), 3: (0.106, 0.063), 2: (0.74, 0.52)}


@pytest.mark.parametrize("bits", NORMAL_ERRORS)
def test_errors_on_the_normal_distribution_are_those_of_the_docs(bits):
    weight = torch.randn(256, 768, generator=torch.Generator().manual_seed(1))
    for rows, wanted in zip((CHANNEL, group(64)), NORMAL_ERRORS[bits], strict=True):
        error = (decode(Absmax(bits, rows).quantize(weight)) - weight).square().mean().item()
        assert error == pytest.approx(wanted, rel=0.03)


def test_the_default_is_8_bits_by_channel():
    assert Absmax() == Absmax(bits=8, granularity=CHANNEL, range="absmax")


def test_an_unknown_range_is_a_usage_error():
    with pytest.raises(UsageError, match="range 'max' is unknown; did you mean minmax"):
        Absmax(range="max")
