"""GPTQ against a dense oracle, and against nearest rounding on its own objective."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit import Absmax, Binary, InputError, UsageError, ZeroPoint, dequantize
from lowbit.formats import TENSOR, group
from lowbit.formats.affine import centred_codes
from lowbit.solvers import gptq
from tests.solvers.correlated import hessian_of, problem, seeds
from tests.solvers.oracle import compensated, output_error

SCHEMES = [
    ZeroPoint(4, group(16)),
    ZeroPoint(2, group(16)),
    Absmax(3, group(24)),
    ZeroPoint(3),
    Absmax(8),
    Absmax(4, TENSOR),
]


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_sweep_equals_a_dense_oracle(scheme, order):
    weight, inputs = problem(3)
    hessian = hessian_of(inputs)
    found = gptq.solve(weight, hessian, scheme, damping=0.02, order=order, rounds=0)
    width = scheme.granularity.width(40)
    importance = np.diag(hessian.double().numpy())
    groups = [np.arange(40)[i : i + width] for i in range(0, 40, width)]
    if order:
        groups = [g[np.argsort(-importance[g], kind="stable")] for g in groups]
        groups.sort(key=lambda g: -importance[g].mean())
    centred = centred_codes(found).double().numpy()
    zero_point = isinstance(scheme, ZeroPoint)
    lowest, highest = -(2 ** (scheme.bits - 1)) + 1, 2 ** (scheme.bits - 1) - 1

    def grid(column, _):
        unit = 0 if scheme.granularity == TENSOR else column // width
        scale = found.scale.double().numpy()[:, unit]
        if zero_point:
            return scale, found.zero_point.double().numpy()[:, unit], 2**scheme.bits - 1
        return scale, -lowest, highest - lowest

    q, decoded = compensated(
        weight.numpy(), hessian.double().numpy(), 0.02, grid, np.concatenate(groups)
    )
    zeros = np.stack([np.broadcast_to(grid(j, None)[1], 12) for j in range(40)], 1)
    assert np.array_equal(q - zeros, centred)
    assert np.allclose(decoded, dequantize(found).double().numpy(), rtol=1e-6, atol=1e-6)


@given(seeds, st.sampled_from(SCHEMES), st.sampled_from([0, 3]))
@settings(max_examples=6)
def test_the_output_error_is_below_that_of_nearest_rounding(seed, scheme, rounds):
    weight, inputs = problem(seed)
    hessian = hessian_of(inputs).numpy()
    near = dequantize(scheme.quantize(weight)).numpy()
    found = dequantize(gptq.solve(weight, torch.from_numpy(hessian), scheme, rounds=rounds))
    error = output_error(weight.numpy(), found.numpy(), hessian)
    assert error <= output_error(weight.numpy(), near, hessian)


@given(seeds)
@settings(max_examples=4)
def test_descent_never_raises_the_error(seed):
    weight, inputs = problem(seed)
    hessian = hessian_of(inputs)
    eye = torch.eye(40) * hessian.diagonal().mean() * 0.01
    errors = [
        output_error(
            weight.numpy(),
            dequantize(gptq.solve(weight, hessian, ZeroPoint(3, group(16)), rounds=r)).numpy(),
            (hessian + eye).numpy(),
        )
        for r in (0, 1, 4)
    ]
    assert errors[1] < errors[0]
    assert errors[2] <= errors[1] * (1 + 1e-9)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_are_of_scales_as_stored_and_within_the_format(scheme):
    weight, inputs = problem(5, columns=37)
    weight[2] = 0
    weight[:, 16:20] = 0
    found = gptq.solve(weight, hessian_of(inputs), scheme)
    near = scheme.quantize(weight)
    assert found.layout == near.layout and found.shape == near.shape
    assert {n: t.shape for n, t in found.tensors().items()} == {
        n: t.shape for n, t in near.tensors().items()
    }
    assert (found.scale > 0).all()
    assert torch.equal(dequantize(found)[2], torch.zeros(37))


@pytest.mark.parametrize("kind", ["zero", "one direction", "dead inputs"])
def test_a_singular_hessian_is_damped(kind):
    weight, inputs = problem(6)
    inputs = {"zero": inputs * 0, "one direction": inputs[:1], "dead inputs": inputs.clone()}[kind]
    if kind == "dead inputs":
        inputs[:, ::3] = 0
    found = dequantize(gptq.solve(weight, hessian_of(inputs), ZeroPoint(4, group(16))))
    assert torch.isfinite(found).all()
    assert ((found - weight).norm() <= 0.5 * weight.norm()).item()


def test_wrong_use_gets_one_sentence():
    weight, inputs = problem(7)
    with pytest.raises(UsageError, match="scheme binary has others"):
        gptq.solve(weight, hessian_of(inputs), Binary(3, group(16)))
    with pytest.raises(InputError, match="exceed the range of float32"):
        gptq.solve(weight, hessian_of(inputs) * torch.inf, ZeroPoint(4))
    weight[1, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 480 weights are NaN"):
        gptq.solve(weight, hessian_of(inputs), ZeroPoint(4))
