"""Native layer norm gives torch's bits, or leaves it to torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.kernels import layer_norm, native
from lowbit.kernels.sequence import sequence

pytestmark = pytest.mark.skipif(
    bool(native.lacks("avx2")), reason=native.lacks("avx2") or "present"
)
torch_has_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch computes with other vectors here",
)


def operands(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 10.0 ** (seed % 9 - 4) + seed % 5
    return x, *(torch.randn(shape[-1:], generator=generator) for _ in range(2))


def normalized(x, weight, bias, epsilon=1e-5):
    y = torch.full_like(x, 7.0)
    made = layer_norm.operation(y, x, x.shape[-1:], weight=weight, bias=bias, eps=epsilon)
    if made is None:
        return None
    sequence([made])()
    return y


@torch_has_avx2
@pytest.mark.parametrize("columns", [64, 192, 384, 768, 1024, 1280])
def test_usual_widths_have_torchs_bits(columns):
    assert layer_norm.has_torchs_bits(columns, 1e-5)


@torch_has_avx2
def test_the_comparison_does_not_depend_on_the_default_device():
    layer_norm.has_torchs_bits.cache_clear()
    with torch.device("meta"):
        assert layer_norm.has_torchs_bits(64, 1e-5)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 300) | st.integers(1, 5000),
    st.integers(0, 10**6),
    st.sampled_from([1e-5, 1e-6, 1e-12]),
)
def test_it_has_torchs_bits_or_is_left_to_torch(rows, columns, seed, epsilon):
    x, weight, bias = operands([*rows, columns], seed)
    y = normalized(x, weight, bias, epsilon)
    if y is not None:
        assert torch.equal(y, torch.layer_norm(x, (columns,), weight, bias, epsilon))


@torch_has_avx2
@pytest.mark.parametrize("number", [0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3e38])
def test_special_numbers(number):
    x, weight, bias = operands([3, 64], 1)
    x[1, 5] = number
    x[2] = number
    wanted = torch.layer_norm(x, (64,), weight, bias)
    np.testing.assert_array_equal(normalized(x, weight, bias), wanted)


def test_another_order_of_sums_is_found(monkeypatch):
    """Nothing but the comparison says whether this torch computes as the native code does."""
    own = torch.layer_norm

    def other(x, *args):
        y = own(x, *args)
        # As rare as the rows in which one other rounding shows.
        y[7, 0] = torch.nextafter(y[7, 0], torch.tensor(9e9))
        return y

    layer_norm.has_torchs_bits.cache_clear()
    monkeypatch.setattr(torch, "layer_norm", other)
    assert not layer_norm.has_torchs_bits(64, 1e-5)
    assert normalized(*operands([2, 64], 0)) is None
    layer_norm.has_torchs_bits.cache_clear()


def test_what_is_not_served_is_left_to_torch():
    x, weight, bias = operands([4, 6], 0)
    y = torch.empty_like(x)
    for made in (
        layer_norm.operation(y, x, (6,)),
        layer_norm.operation(y, x, (6,), weight),
        layer_norm.operation(y, x, (4, 6), x, x),
        layer_norm.operation(y.double(), x.double(), (6,), weight.double(), bias.double()),
        layer_norm.operation(y, x.t().contiguous().t(), (6,), weight, bias),
        layer_norm.operation(y[:0], x[:0], (6,), weight, bias),
        layer_norm.operation(torch.empty(4000, 10), torch.empty(4000, 10), (10,), bias, bias),
    ):
        assert made is None
