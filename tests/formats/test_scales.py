import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.formats.scales import safe_scale, stored_dtype
from tests.oracles import affine as oracle

HALF = torch.finfo(torch.float16)
SINGLE = torch.finfo(torch.float32)


@pytest.mark.parametrize(
    "scales, dtype",
    [
        ([HALF.smallest_normal, HALF.max], torch.float16),
        ([0.0, 1.0, -HALF.max], torch.float16),
        ([], torch.float16),
        ([HALF.smallest_normal * 0.999, 1.0], torch.float32),
        ([-HALF.smallest_normal / 2], torch.float32),
        ([1.0, HALF.max * 1.001], torch.float32),
        ([float("nan")], torch.float32),
    ],
)
def test_one_scale_outside_float16s_normal_range_makes_the_tensor_float32(scales, dtype):
    assert stored_dtype(torch.tensor(scales)) == dtype


def test_a_scale_of_zero_or_one_that_underflows_is_one():
    scale = torch.tensor([0.0, SINGLE.tiny / 2, SINGLE.tiny, 0.5])
    assert safe_scale(scale).tolist() == [1.0, 1.0, SINGLE.tiny, 0.5]
    assert safe_scale(torch.tensor([0.0])).dtype == torch.float16


@given(st.lists(st.floats(0, SINGLE.max, width=32), max_size=8))
def test_stored_scales_equal_numpys(values):
    scale = np.array(values, np.float32)
    stored, wanted = safe_scale(torch.from_numpy(scale)).numpy(), oracle.safe(scale)
    assert stored.dtype == wanted.dtype
    np.testing.assert_array_equal(stored, wanted)


@given(st.lists(st.floats(0, SINGLE.max, width=32), max_size=8))
def test_a_stored_scale_is_off_by_at_most_one_part_in_2048(values):
    scale = torch.tensor(values, dtype=torch.float32)
    stored = safe_scale(scale).double()
    usual = scale >= SINGLE.tiny
    error = (stored - scale.double()).abs()[usual]
    assert (error <= scale.double()[usual] / 2048).all()
