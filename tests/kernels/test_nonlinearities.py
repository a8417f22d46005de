"""The functions after a product: near the exact ones, alike on all targets, differentiable."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lowbit.formats import group
from lowbit.kernels import native, ops
from lowbit.kernels.linear.native import LinearProduct, kernels
from lowbit.kernels.linear.reference import NONLINEARITIES
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.kernels.selection import VARIABLE
from lowbit.nn import QuantLinear
from tests.stored import Form
from tests.targets import runnable

HERE = runnable(kernels("float"))
EXACT = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x * logistic(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "quick_gelu": lambda x: x * logistic(1.702 * x),
    "silu": lambda x: x * logistic(x),
}
every_function = pytest.mark.parametrize("function", EXACT)
needs_native = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")


def logistic(x):
    """1 / (1 + exp(-x)) that overflows for no x."""
    return math.exp(min(x, 0.0)) / (1 + math.exp(-abs(x)))


def assert_near(y, x, function):
    """Within 4e-7 max(|x|, 1) of the function of float64; NaN is near nothing."""
    exact = np.vectorize(EXACT[function])(x.double().numpy())
    error = np.abs(y.double().numpy() - exact)
    assert (error <= 4e-7 * np.maximum(np.abs(x.double().numpy()), 1)).all()


def form_of(q):
    return PackedLayout(q.layout, *q.shape)


def biases_alone(bias, function, target):
    """A product of zeros leaves the bias, whatever its value."""
    q = Form("affine", 8).random(len(bias), 8).q
    form = LinearProduct(form_of(q), "dynamic", target, function)
    return form(torch.zeros(40, 8), form_of(q).pack(q), bias)


VALUES = torch.cat(
    [
        torch.linspace(-9, 9, 20_001),
        torch.linspace(-100, 100, 2_001),
        torch.logspace(-37, 30, 500),
        -torch.logspace(-37, 30, 500),
        torch.tensor([0.0, -0.0, 5.5, -5.5, 5.0, -5.0, 80.0, -80.0, 3e38, -3e38]),
    ]
)


@needs_native
@every_function
def test_values_are_near_the_exact_ones_and_alike_on_all_targets(function):
    first = biases_alone(VALUES, function, HERE[-1])
    assert_near(first[0], VALUES, function)
    for target in HERE:
        y = biases_alone(VALUES, function, target)
        assert torch.equal(y.view(torch.int32), first.view(torch.int32)), target


@needs_native
@every_function
def test_what_is_not_finite_stays_so(function):
    bias = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    for target in HERE:
        y = biases_alone(bias, function, target)
        assert y[:, 0].isnan().all() and (y[:, 1] == torch.inf).all()
        limit = -torch.inf if function == "identity" else 0.0
        assert ((y[:, 2] == limit) | (y[:, 2].abs() < 1e-6)).all()
        assert y[:, 3].isfinite().all()


@needs_native
@every_function
@pytest.mark.parametrize("family", ["limbs", "fma", None])
@pytest.mark.parametrize(
    "form", [Form("affine", 8), Form("affine", 4, group(32), True), Form("binary", 2)], ids=str
)
def test_it_follows_the_product_and_the_bias(form, family, function):
    """Also where the last outputs are fewer than a vector holds."""
    q, bias = form.random(75, 70).q, torch.linspace(-2, 2, 75)
    packed, kind = form_of(q).pack(q), "float" if family else "dynamic"
    for rows in (1, 5, 50):
        x = torch.randn(rows, 70, generator=torch.Generator().manual_seed(rows)) * 3
        results = []
        for target in HERE:
            plain = LinearProduct(form_of(q), kind, target, family=family)
            followed = LinearProduct(form_of(q), kind, target, function, family=family)
            before, y = plain(x, packed, bias), followed(x, packed, bias)
            assert_near(y, before, function)
            results.append(y)
        assert all(torch.equal(y, results[0]) for y in results)


@every_function
@pytest.mark.parametrize("kind", ["float", "dynamic"])
@pytest.mark.parametrize("target", ["reference", *HERE])
def test_gradients_are_those_of_the_product_and_then_the_function(
    target, kind, function, monkeypatch
):
    monkeypatch.setenv(VARIABLE, target)
    q = Form("affine", 4, group(32)).random(40, 64).q
    layer = QuantLinear(q.layout, 64, 40, nn.Parameter(torch.linspace(-1, 1, 40)), kind).hold(q)
    x, grad = torch.randn(3, 64), torch.randn(3, 40)

    def run(fused):
        layer.set_nonlinearity(function if fused else "identity")
        given = x.clone().requires_grad_()
        layer.bias.grad = None
        y = layer(given) if fused else NONLINEARITIES[function](layer(given))
        y.backward(grad)
        return y.detach(), given.grad, layer.bias.grad

    for fused, apart in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-5)
    # Without gradients the module calls the kernel itself.
    wanted, *_ = run(True)
    with torch.no_grad():
        assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@every_function
def test_other_dtypes_come_back_in_their_own(function, dtype):
    q = Form("affine", 8).random(24, 40).q
    x = torch.randn(5, 40).to(dtype)
    y = ops.linear(x, q, None, "dynamic", function)
    assert y.dtype == dtype
    before = ops.linear(x.float(), q, None, "dynamic")
    tolerance = 2 * torch.finfo(dtype if dtype != torch.float64 else torch.float32).eps
    wanted = NONLINEARITIES[function](before).double()
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=1e-5)
