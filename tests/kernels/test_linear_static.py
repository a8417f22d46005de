"""Static activations: one scale, known beforehand. NumPy is the oracle."""

import numpy as np
import pytest
import torch

from lowbit.formats import StaticScale, group
from lowbit.kernels import linear, native, ops
from lowbit.kernels.linear import KERNELS, reference
from lowbit.kernels.linear.native import kernels
from lowbit.kernels.selection import VARIABLE
from lowbit.nn import ACTIVATIONS, QuantLinear
from tests.stored import STACKS, Form
from tests.targets import parameters, runnable

FORMS_USED = [
    Form("affine", 8),
    Form("affine", 4, group(32)),
    Form("affine", 3, group(64)),
    Form("binary", 3, group(32)),
    STACKS[1],
]
STATIC = [StaticScale(0.03), StaticScale(0.02, -40), StaticScale(0.011, 127)]


def codes_of(x, static):
    """rint(x / s) + z, clamped, as the doc says; the division is a product with a float32 1/s."""
    inv = np.float32(1) / np.float32(static.scale)
    codes = np.rint(x * inv) + static.zero_point
    return np.clip(codes, static.lowest, 127)


def expected(x, weight, bias, static):
    """float64: the decoded weight times the decoded activations."""
    decoded = np.float64(np.float32(static.scale)) * (codes_of(x, static) - static.zero_point)
    return decoded @ weight.astype(np.float64).T + bias


@pytest.fixture(params=parameters(KERNELS["static"]))
def target(request, monkeypatch):
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("static", STATIC, ids=str)
@pytest.mark.parametrize("form", FORMS_USED, ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 16), (37, 200, 50)])
def test_every_path_computes_the_decoded_product(target, form, static, rows, inputs, outputs):
    case = form.random(outputs, inputs)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator)
    x[0, 0], x[-1, -1] = 1e30, -1e30  # far out of range: clamped, not wrapped around
    bias = torch.randn(outputs, generator=generator)
    y = linear.linear(x, case.q, bias, "static", "identity", static).double().numpy()
    weight = ops.dequantize(case.q).numpy()
    wanted = expected(x.numpy(), weight, bias.double().numpy(), static)
    size = np.abs(weight).sum(1) * 255 * static.scale + 1
    assert (np.abs(y - wanted) <= 2e-6 * size).all()


@pytest.mark.parametrize("form", FORMS_USED, ids=str)
def test_around_zero_all_targets_have_the_bits_of_the_reference(target, form):
    case = form.random(40, 128)
    x = torch.randn(19, 128, generator=torch.Generator().manual_seed(1)) * 3
    wanted = reference.linear_static(x, case.q, None, "identity", STATIC[0])
    assert torch.equal(linear.linear(x, case.q, None, "static", "identity", STATIC[0]), wanted)


@pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
@pytest.mark.parametrize("static", STATIC, ids=str)
@pytest.mark.parametrize("form", FORMS_USED, ids=str)
def test_all_native_paths_have_the_same_bits(form, static, monkeypatch):
    case = form.random(40, 200)
    x = torch.randn(19, 200, generator=torch.Generator().manual_seed(1)) * 3
    found = []
    for target in runnable(kernels("static")):
        monkeypatch.setenv(VARIABLE, target)
        found.append(linear.linear(x, case.q, None, "static", "identity", static))
    assert all(torch.equal(y, found[0]) for y in found)


def test_what_is_not_finite_stays_visible(target):
    case = Form("affine", 8).random(20, 64)
    x = torch.ones(3, 64)
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    y = linear.linear(x, case.q, None, "static", "identity", STATIC[0])
    assert y[0].isfinite().all() and y[1:].isnan().all()


@pytest.mark.parametrize("static", STATIC, ids=str)
def test_a_module_stores_its_scale_and_takes_the_zero_point_off_its_bias(static):
    q = Form("affine", 8).random(24, 64).q
    bias = torch.nn.Parameter(torch.randn(24))
    module = QuantLinear(q.layout, 64, 24, bias, "static")
    module.hold(q).set_static(static)
    module.eval()
    x = torch.randn(4, 64)
    with torch.no_grad():
        wanted = reference.linear_static(x, q, bias, "identity", static)
        torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-4)
        stored = module.state_dict()
        assert stored["input_scale"] == np.float32(static.scale)
        assert stored["input_zero_point"] == static.zero_point
        torch.testing.assert_close(module.half()(x).float(), wanted, rtol=2e-2, atol=5e-2)
        assert module.input_scale.dtype is torch.float32


def test_the_operator_meets_the_rules_of_torch():
    q = Form("affine", 4, group(32)).random(8, 64).q
    x = torch.randn(3, 64, requires_grad=True)
    bias = torch.randn(8, requires_grad=True)
    arguments = (
        x,
        list(q.tensors().values()),
        bias,
        ops.layout_text(q.layout),
        "static",
        "gelu",
        0.02,
        3,
    )
    torch.library.opcheck(torch.ops.lowbit.linear.default, arguments)


@pytest.mark.parametrize("activations", ["static", "requantized"])
def test_scales_that_are_loaded_later_are_used(activations):
    """After a forward pass, whose numbers are kept."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def layer(*static):
        case = Form("affine", 8).random(16, 64)
        made = ACTIVATIONS[activations][0](case.q.layout, 64, 16, None, activations="static")
        made.stand_in_for(torch.nn.Linear(64, 16), torch.zeros(0))
        made.hold(case.q).set_static(*static)
        return made

    pairs = [(StaticScale(0.03), StaticScale(0.5)), (StaticScale(0.02, -40), StaticScale(0.3, 9))]
    count = 2 if activations == "requantized" else 1
    first, second = (layer(*pair[:count]) for pair in pairs)
    assert not torch.equal(first(x), second(x))
    for one, other in ((first, second), (second, layer(*pairs[0][:count]))):
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(x), other(x))
