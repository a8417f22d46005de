"""Ranges of activations: found by observing, one scale in the end."""

import numpy as np
import pytest
import torch

from lowbit import UsageError
from lowbit.calibration.observers import (
    OBSERVERS,
    Ema,
    Learned,
    LeastSquares,
    MinMax,
    Percentile,
    scale_of,
)
from lowbit.formats import StaticScale, fake_quantize


def batches(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 16, generator=generator) * (1 + i) for i in range(count)]


def observed(found, xs):
    for x in xs:
        found.observe(x)
    return found


def test_a_symmetric_scale_has_zero_in_the_middle():
    assert scale_of(-2.54, 1.0, True) == StaticScale(np.float32(2 * 2.54 / 254).item(), 0)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 5.0), (-7.0, 0.0), (-0.01, 4.0)])
def test_an_asymmetric_scale_reaches_both_ends_and_zero_is_a_code(low, high):
    found = scale_of(low, high, False)
    assert -128 <= found.zero_point <= 127
    reach = [found.scale * (code - found.zero_point) for code in (found.lowest, 127)]
    assert reach[0] <= low + found.scale and reach[1] >= high - found.scale


def test_a_range_of_nothing_has_the_scale_one():
    assert scale_of(0.0, 0.0, True) == StaticScale(1.0, 0) == scale_of(0.0, 0.0, False)


def test_ema_by_hand():
    """Three batches with extremes (−1, 2), (−3, 4), (0, 1) and decay 0.5: weights ¼, ½ and 1."""
    found = Ema(decay=0.5)
    for low, high in ((-1.0, 2.0), (-3.0, 4.0), (0.5, 1.0)):
        found.observe(torch.tensor([low, high]))
    weights = np.array([0.25, 0.5, 1.0]) / 1.75
    assert found.interval()[0] == pytest.approx(-(weights * [1, 3, 0]).sum(), rel=1e-6)
    assert found.interval()[1] == pytest.approx((weights * [2, 4, 1]).sum(), rel=1e-6)


def test_a_slow_ema_is_the_mean_at_first():
    found = observed(Ema(decay=0.9999), [torch.tensor([-v, v]) for v in (1.0, 2.0, 6.0)])
    assert found.interval()[1] == pytest.approx(3.0, rel=1e-3)


def test_minmax_is_the_smallest_and_the_largest():
    xs = batches()
    found = observed(MinMax(), xs).interval()
    assert found == (min(x.min() for x in xs).item(), max(x.max() for x in xs).item())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_percentile_leaves_out_as_many_as_it_says(symmetric):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(3)) + 0.3
    found = observed(Percentile(symmetric, percentile=99), values.split(20_000))
    low, high = found.interval()
    bound = max(-low, high)
    inside = (values.abs() <= bound) if symmetric else (values >= low) & (values <= high)
    assert inside.float().mean().item() == pytest.approx(0.99, abs=2e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_has_less_error_than_minmax_where_there_are_outliers(symmetric):
    values = torch.randn(500_000, generator=torch.Generator().manual_seed(4))
    values[0] = 40.0
    errors = []
    for kind in (LeastSquares, MinMax):
        found = observed(kind(symmetric), [values])
        errors.append((found(values) - values).square().mean().item())
    assert errors[0] < 0.9 * errors[1]


def test_mse_moves_one_end_alone_if_only_one_side_has_outliers():
    inputs = 0.3 * torch.randn(60_000, generator=torch.Generator().manual_seed(5)) - 0.8
    values = torch.nn.functional.gelu(inputs)
    values[0] = 4.0
    x = values.double().numpy()

    def error(low, high):
        step = (high - low) / 255
        zero = np.rint(-128 - low / step)
        codes = np.clip(np.rint(x / step) + zero, -128, 127)
        return np.square((codes - zero) * step - x).mean()

    low, high = x.min(), x.max()
    parts = np.linspace(0.05, 1, 20)
    least = min(error(low * a, high * b) for a in parts for b in parts)
    found = observed(LeastSquares(), [values])
    assert (found(values) - values).square().mean().item() <= 1.05 * least
    assert least < 0.9 * min(error(low * a, high * a) for a in parts)


def loss(x, low, high):
    """The squared error of each row, by 1/(its root mean square + the mean row's), in float64."""
    step = (high - low) / 255
    zero = np.rint(-128 - low / step)
    codes = np.clip(np.rint(x / step) + zero, -128, 127)
    size = np.sqrt(np.square(x).mean(-1))
    rows = np.square((codes - zero) * step - x).mean(-1)
    return (rows / (size + size.mean())).sum()


def least_loss(x):
    low, high = x.min(), x.max()
    parts = np.linspace(0.04, 1, 25)
    return min(loss(x, low * part, high * part) for part in parts)


def behind_a_gelu(rows, features, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.gelu(torch.randn(rows, features, generator=generator) - 0.5)


def test_a_massive_token_does_not_take_the_codes_of_all_others():
    values = behind_a_gelu(512, 128, seed=6)
    values[0, :3] = 90.0
    x = values.double().numpy()
    low, high = observed(LeastSquares(), [values]).interval()
    assert loss(x, low, high) <= 1.05 * least_loss(x)
    assert loss(x[1:], low, high) < 0.5 * loss(x[1:], x.min(), x.max())


def test_rows_close_to_zero_do_not_decide():
    values = behind_a_gelu(512, 128, seed=7)
    values[::2] *= 1e-6
    x = values.double().numpy()
    low, high = observed(LeastSquares(), [values]).interval()
    assert loss(x, low, high) <= 1.05 * least_loss(x) and high > 0.5 * x.max()


def test_a_single_large_batch_is_counted_closely():
    """One value of 200,000 is large: a sample of 2^16 would hold none of them, or one."""
    values = behind_a_gelu(4000, 1024, seed=8)
    values.view(-1)[5::200_003] = 20.0
    x = values.double().numpy()
    low, high = observed(LeastSquares(), [values]).interval()
    assert loss(x, low, high) <= 1.2 * least_loss(x)


@pytest.mark.parametrize("batch", [1, 32])
def test_every_value_far_from_zero_is_counted_and_a_sample_of_the_others(batch):
    generator = torch.Generator().manual_seed(9)
    found = observed(Percentile(), [torch.full((1, 1), 50.0)] * (batch - 1))
    before = found.counts.clone()
    values = torch.randn(4000, 1024, generator=generator)
    values.view(-1)[7::400_009], values.view(-1)[8::500_009] = 49.9, -49.9
    values[0, 0] = 50.0  # the edge
    counts = observed(found, [values]).counts - before
    assert counts[-10:].sum() == 1 + len(range(7, values.numel(), 400_009))
    assert counts[:10].sum() == len(range(8, values.numel(), 500_009))
    assert counts.sum() == pytest.approx(values.numel(), rel=1e-9)
    below = counts[: len(counts) // 2].sum().item()
    assert below == pytest.approx((values < 0).sum().item(), rel=0.02)


@pytest.mark.parametrize("largest", [1e-30, 1e30])
def test_values_near_the_largest_and_smallest_numbers_have_a_range(largest):
    low, high = observed(LeastSquares(), [torch.linspace(-largest, largest, 4096)]).interval()
    assert low < -0.5 * largest and high > 0.5 * largest


def test_a_value_that_is_no_number_changes_no_weight():
    values = behind_a_gelu(512, 128, seed=6)
    values[0, :3] = 90.0
    clean = observed(LeastSquares(), [values]).interval()
    values[7, 7] = torch.nan
    assert observed(LeastSquares(), [values]).interval() == pytest.approx(clean, rel=0.03)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", OBSERVERS)
def test_the_forward_pass_equals_quantize_and_dequantize(name, symmetric):
    found = observed(OBSERVERS[name](symmetric), batches())
    x = batches(1, 9)[0] * 4
    static = found.static()
    inv = np.float32(1) / np.float32(static.scale)
    codes = np.clip(np.rint(x.numpy() * inv) + static.zero_point, static.lowest, 127)
    expected = ((codes - static.zero_point) * np.float32(static.scale)).astype(np.float32)
    np.testing.assert_array_equal(found(x).detach().numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.03, 0), (0.0217, -40), (1e-5, 3), (7.0, 127)])
def test_numbers_and_gradients_are_those_of_torch(dtype, scale, zero_point):
    static = StaticScale(np.float32(scale).item(), zero_point)
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(4096, generator=generator)).to(dtype).requires_grad_()
    wanted = torch.fake_quantize_per_tensor_affine(
        x, static.scale, static.zero_point, static.lowest, 127
    )
    wanted.sum().backward()
    rounded, inside = fake_quantize(x.detach(), static)
    assert torch.equal(rounded, wanted) and torch.equal(inside.to(dtype), x.grad)


def test_what_is_no_number_stays_none():
    rounded, inside = fake_quantize(torch.tensor([torch.nan, torch.inf, 1.0]), StaticScale(0.5))
    assert rounded.isnan().tolist() == [True, False, False] and rounded[1:].tolist() == [63.5, 1.0]
    assert inside.tolist() == [False, False, True]


def test_gradients_stop_where_activations_are_clamped():
    found = observed(MinMax(), [torch.tensor([-1.0, 1.0])])
    x = torch.tensor([-3.0, -0.5, 0.2, 2.0], requires_grad=True)
    found(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_a_learned_range_starts_from_what_was_seen_and_has_the_gradient_of_lsq():
    found = observed(Learned(symmetric=True), [torch.tensor([-1.27, 1.27])])
    x = torch.tensor([-3.0, 0.1234, 2.0], requires_grad=True)
    found(x).sum().backward()
    assert found.scale.item() == pytest.approx(0.01, rel=1e-6)
    v = 0.1234 / 0.01
    expected = (-127 + (round(v) - v) + 127) / np.sqrt(3 * 127)
    assert found.scale.grad.item() == pytest.approx(expected, rel=1e-3)
    found.observe(torch.tensor([-100.0, 100.0]))
    assert found.static().scale == pytest.approx(0.01, rel=1e-6)
    # Training may push it across zero: the same range, and a gradient that knows.
    with torch.no_grad():
        found.scale.neg_()
    found.scale.grad = None
    found(x).sum().backward()
    assert found.scale.grad.item() == pytest.approx(-expected, rel=1e-3)


def test_what_is_not_finite_is_left_out():
    found = observed(MinMax(), [torch.tensor([torch.nan, -2.0, torch.inf, 3.0]), torch.tensor([])])
    assert found.interval() == (-2, 3)
    assert not int(observed(MinMax(), [torch.tensor([torch.nan])]).seen)


def test_a_range_that_saw_nothing_is_refused():
    with pytest.raises(UsageError, match="no activation was seen"):
        MinMax().static()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Ema(decay=1.0), "decay 1.0 is outside"),
        (lambda: Percentile(percentile=0.0), "percentile 0.0 is outside"),
        (lambda: MinMax(decay=0.5), "no option 'decay'"),
    ],
)
def test_options_that_are_none_are_refused(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()
