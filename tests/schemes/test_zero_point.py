import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.formats import CHANNEL, Granularity, group
from lowbit.formats.affine import decode
from lowbit.schemes import ZeroPoint
from tests.oracles import affine as oracle
from tests.oracles import packing
from tests.weights import units_of, weights

BITS = st.integers(2, 8)


def quantize(weight, bits, size):
    granularity = Granularity.parse(size if isinstance(size, str) else f"group:{size}")
    return ZeroPoint(bits, granularity).quantize(weight)


def spread(parameter, weight, size):
    return oracle.spread(parameter.double().numpy(), weight.shape, size)


@given(weights(), BITS, st.data())
def test_scales_zero_points_and_codes_equal_numpys(weight, bits, data):
    size = data.draw(units_of(weight))
    q = quantize(weight, bits, size)
    scale, zero_point, codes = oracle.asymmetric(weight.float().numpy(), bits, size)
    assert q.scale.numpy().dtype == scale.dtype
    np.testing.assert_array_equal(q.scale.numpy(), scale)
    np.testing.assert_array_equal(q.zero_point.numpy(), zero_point)
    np.testing.assert_array_equal(q.codes.numpy(), packing.pack(codes, bits))


@given(weights(), BITS, st.data())
def test_error_is_at_most_half_a_step_where_nothing_clips(weight, bits, data):
    size = data.draw(units_of(weight))
    q = quantize(weight, bits, size)
    error = np.abs(decode(q).double().numpy() - weight.double().numpy())
    scale = spread(q.scale, weight, size)
    unclipped = oracle.quotients(
        weight.float().numpy(), q.scale.numpy(), size, q.zero_point.numpy()
    )
    held = (unclipped >= 0) & (unclipped <= (1 << bits) - 1)
    assert (error <= scale * (0.5 + 1e-4))[held].all()
    # The range is 2^b − 1 steps, and rounding the step to float16 stretches it by 1 / 2048.
    assert (error <= scale * (0.5 + 1e-4 + ((1 << bits) - 1) / 2048)).all()


@given(weights(), BITS, st.data())
def test_zero_stays_zero(weight, bits, data):
    q = quantize(weight, bits, data.draw(units_of(weight)))
    assert (decode(q)[weight == 0] == 0).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_group_of_zeros_has_scale_one_and_the_code_of_zero(bits):
    q = ZeroPoint(bits, group(2)).quantize(torch.tensor([[0.0, 0.0, -1.0, 1.0]]))
    assert q.scale[0, 0] == 1 and q.zero_point[0, 0] == 0
    assert decode(q)[0, :2].tolist() == [0.0, 0.0]


def test_the_range_includes_zero_where_all_weights_have_one_sign():
    q = ZeroPoint(4).quantize(torch.tensor([[3.0, 15.0], [-3.0, -15.0]]))
    assert q.scale.tolist() == [[1.0], [1.0]] and q.zero_point.tolist() == [[0], [15]]
    assert decode(q).tolist() == [[3.0, 15.0], [-3.0, -15.0]]


NORMAL_ERRORS = {8: (0.000052, 0.000029), 4: (0.0150, 0.0083), 3: (0.069, 0.038), 2: (0.37, 0.21)}


@pytest.mark.parametrize("bits", NORMAL_ERRORS)
def test_errors_on_the_normal_distribution_are_those_of_the_docs(bits):
    weight = torch.randn(256, 768, generator=torch.Generator().manual_seed(1))
    for rows, wanted in zip((CHANNEL, group(64)), NORMAL_ERRORS[bits], strict=True):
        error = (decode(ZeroPoint(bits, rows).quantize(weight)) - weight).square().mean().item()
        assert error == pytest.approx(wanted, rel=0.03)


def test_halves_round_to_even():
    q = ZeroPoint(4).quantize(torch.tensor([[0.5, 1.5, 2.5, 15.0]]))
    assert decode(q).tolist() == [[0.0, 2.0, 2.0, 15.0]]
