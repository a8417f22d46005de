import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.kernels import native
from lowbit.kernels.quantize_rows import KERNELS, quantize_rows
from tests.targets import parameters

KERNEL_PARAMS = parameters(KERNELS, whole=True)


def run(kernel, x, group_size):
    codes, scales = kernel.run(torch.from_numpy(x), group_size)
    assert codes.dtype == torch.int8 and scales.dtype == torch.float32
    return codes.numpy(), scales.numpy()


def oracle(x, group_size):
    rows, cols = x.shape
    starts = range(0, cols, group_size)
    codes = np.zeros((rows, cols), np.int8)
    scales = np.ones((rows, len(starts)), np.float32)
    for row in range(rows):
        for group, start in enumerate(starts):
            part = x[row, start : start + group_size]
            a = np.abs(part).max()
            if not np.isfinite(part).all():
                scales[row, group] = np.nan
            elif a >= np.float32(2.0**-100):
                scales[row, group] = a / np.float32(127)
                scaled = part * (np.float32(127) / a)
                codes[row, start : start + group_size] = np.clip(np.rint(scaled), -127, 127)
    return codes, scales


def assert_same(got, wanted):
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


values = st.one_of(
    st.floats(width=32),
    st.floats(-8, 8, width=32),
    st.sampled_from([0.0, -0.0, 2.0**-100, -(2.0**-101), 1e-40, 3.4e38, np.nan, np.inf, -np.inf]),
)
matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=values
)


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@settings(deadline=None)
@given(x=matrices, group_size=st.integers(1, 80))
@example(x=np.zeros((2, 5), np.float32), group_size=2)
@example(x=np.full((1, 3), -1.5, np.float32), group_size=64)
def test_every_kernel_equals_numpy_bit_for_bit(kernel, x, group_size):
    assert_same(run(kernel, x, group_size), oracle(x, group_size))


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4097), (3, 768), (257, 300), (0, 8), (5, 0)])
@pytest.mark.parametrize("group_size", [1, 31, 64, 5000])
def test_every_kernel_equals_numpy_on_larger_and_on_empty_shapes(kernel, shape, group_size):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert_same(run(kernel, x, group_size), oracle(x, group_size))


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
def test_ties_round_to_even(kernel):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127]], np.float32)
    codes, scales = run(kernel, x, 8)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]] and scales.tolist() == [[1]]


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
def test_what_is_not_finite_spoils_its_own_group_only(kernel):
    x = np.ones((2, 6), np.float32)
    x[0, 1], x[1, 5] = np.nan, np.inf
    codes, scales = run(kernel, x, 3)
    assert np.isnan(scales).tolist() == [[True, False], [False, True]]
    assert codes.tolist() == [[0, 0, 0, 127, 127, 127], [127, 127, 127, 0, 0, 0]]


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
def test_a_group_below_the_smallest_step_is_zero_with_scale_one(kernel):
    x = np.array([[2.0**-101, -1e-40, 0], [2.0**-100, 0, 0]], np.float32)
    codes, scales = run(kernel, x, 3)
    assert codes.tolist() == [[0, 0, 0], [127, 0, 0]]
    assert scales[0] == 1 and scales[1] == np.float32(2.0**-100) / np.float32(127)


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
def test_strided_and_half_precision_inputs_are_taken_as_contiguous_float32(kernel):
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).t()
    wanted = oracle(x.float().contiguous().numpy(), 16)
    run(kernel, np.ones((1, 1), np.float32), 1)
    codes, scales = kernel.run(x, 16)
    assert_same((codes.numpy(), scales.numpy()), wanted)


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
def test_a_group_size_below_one_is_refused(kernel):
    with pytest.raises(ValueError, match="group_size 0 is less than 1"):
        run(kernel, np.ones((1, 4), np.float32), 0)


@given(x=hnp.arrays(np.float32, (3, 40), elements=st.floats(-1e3, 1e3, width=32)))
def test_no_value_is_off_by_more_than_half_a_step(x):
    codes, scales = quantize_rows(torch.from_numpy(x), 16)
    step = scales.double().repeat_interleave(16, dim=1)[:, :40]
    error = (torch.from_numpy(x).double() - codes.double() * step).abs()
    assert (error <= step * (0.5 + 1e-4)).all()


@pytest.mark.skipif(not native.available(), reason=native.reason() or "native module present")
@pytest.mark.parametrize("target", ["sse9", ""])
def test_an_unknown_path_is_refused_with_the_known_ones(target):
    with pytest.raises(ValueError, match="there are scalar"):
        native.module.quantize_rows(0, 0, 0, 0, 0, 1, target)


@pytest.mark.skipif(not native.available(), reason=native.reason() or "native module present")
def test_the_loop_runs_on_torch_threads():
    assert native.module.on_torch_threads()
