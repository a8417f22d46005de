"""HQQ on its own objective, the sum of |error|^0.7."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from lowbit import Absmax, Binary, InputError, UsageError, ZeroPoint, dequantize
from lowbit.formats import TENSOR, group
from lowbit.solvers import hqq
from tests.models import make, output
from tests.solvers.correlated import problem, seeds

SCHEMES = [ZeroPoint(4, group(16)), ZeroPoint(2, group(24)), Absmax(3), ZeroPoint(3, TENSOR)]


def objective(weight, q):
    return (weight.double() - dequantize(q).double()).abs().pow(0.7).sum()


@given(seeds, st.sampled_from(SCHEMES), st.sampled_from([1e-6, 1.0, 1e4]))
@settings(max_examples=15)
def test_it_is_never_worse_than_nearest_rounding(seed, scheme, size):
    weight = problem(seed)[0] * size
    near, found = scheme.quantize(weight), hqq.solve(weight, None, scheme)
    assert found.layout == near.layout
    assert (objective(weight, found) <= objective(weight, near) * (1 + 1e-9)).item()


def test_at_two_bits_it_is_far_better():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    scheme = ZeroPoint(2, group(64))
    near, found = scheme.quantize(weight), hqq.solve(weight, None, scheme)
    assert (objective(weight, found) < 0.9 * objective(weight, near)).item()


def test_rows_of_zeros_stay_zeros():
    weight = problem(1)[0]
    weight[3] = 0
    assert not dequantize(hqq.solve(weight, None, ZeroPoint(3, group(16))))[3].any()


def test_a_model_needs_no_data():
    model = make("gpt2")
    expected = output(model)
    result = lowbit.quantize(model, "int4-all", solver="hqq")
    assert len(result.plan.quantized) == 11
    assert ((output(model) - expected).norm() <= 0.5 * expected.norm()).item()


def test_wrong_use_gets_one_sentence():
    weight = problem(2)[0]
    with pytest.raises(UsageError, match="scheme binary has others"):
        hqq.solve(weight, None, Binary(3, group(16)))
    with pytest.raises(InputError, match="NaN or infinite"):
        hqq.solve(weight / 0, None, ZeroPoint(4))
