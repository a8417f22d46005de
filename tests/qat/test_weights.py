"""Fake-quantized weights: the forward pass is exact, gradients are those of the papers."""

import numpy as np
import pytest
import torch

from lowbit import InputError, UsageError
from lowbit.formats import CHANNEL, FORMATS, TENSOR, group
from lowbit.qat.weights import ESTIMATORS
from lowbit.schemes import Absmax, Binary, ZeroPoint

SCHEMES = [
    Absmax(8),
    Absmax(8, TENSOR),
    Absmax(4, group(16), range="minmax"),
    ZeroPoint(4, group(16)),
    ZeroPoint(3, CHANNEL),
    Absmax(2, group(16)),
    Binary(2, group(16)),
]


def some_weight(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 40, generator=generator).requires_grad_()


def sent_back(quantizer, weight, seed=1):
    """(ŵ, ∂/∂w of Σ g·ŵ, g) with a random g, all as NumPy."""
    g = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    rounded = quantizer(weight)
    (rounded * g).sum().backward()
    return rounded.detach().numpy(), weight.grad.numpy(), g.numpy()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_forward_pass_is_what_is_stored_decoded(scheme, estimator):
    weight = some_weight()
    if isinstance(scheme, Binary) and estimator != "ste":
        with pytest.raises(UsageError, match="needs an affine scheme, not binary"):
            ESTIMATORS[estimator](scheme, weight)
        return
    quantizer = ESTIMATORS[estimator](scheme, weight)
    stored = quantizer.stored(weight)
    assert torch.equal(quantizer(weight), FORMATS[stored.layout.format].decode(stored))
    if estimator != "lsq":
        plain = scheme.quantize(weight.detach())
        assert all(torch.equal(a, plain.tensors()[n]) for n, a in stored.tensors().items())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_straight_through_passes_every_gradient(scheme):
    weight = some_weight()
    _, found, g = sent_back(ESTIMATORS["ste"](scheme, weight), weight)
    assert np.array_equal(found, g)


def test_clipped_passes_none_where_a_code_is_clamped():
    """One group per row, symmetric 4 bits with the finer step: s = (max − min) / 15."""
    weight = some_weight()
    scheme = Absmax(4, CHANNEL, range="minmax")
    _, found, g = sent_back(ESTIMATORS["clipped"](scheme, weight), weight)
    w = weight.detach().numpy()
    high, low = np.maximum(w.max(1), 0), np.minimum(w.min(1), 0)
    scale = (high / 15 - low / 15).astype(np.float16).astype(np.float32)[:, None]
    codes = np.rint(w / scale)
    inside = (codes >= -8) & (codes <= 7)
    assert 0 < (~inside).sum() < inside.sum()
    assert np.array_equal(found, g * inside)


@pytest.mark.parametrize("scheme", [Absmax(4), ZeroPoint(3, group(16)), Absmax(8, TENSOR)], ids=str)
def test_the_learned_step_has_the_gradients_of_esser(scheme):
    weight = some_weight()
    quantizer = ESTIMATORS["lsq"](scheme, weight)
    with torch.no_grad():
        quantizer.scale *= 0.6  # so that something is clamped
    _, found, g = sent_back(quantizer, weight)
    w, bits = weight.detach().numpy().astype(np.float64), scheme.bits
    width = scheme.granularity.width(40)
    stored = quantizer.stored(weight)
    expected_scale = np.zeros(quantizer.scale.shape)
    sharing = w.size if scheme.granularity == TENSOR else width
    gain = 1 / np.sqrt(sharing * (2 ** (bits - 1) - 1))
    for row in range(12):
        for k in range(40):
            at = (0, 0) if scheme.granularity == TENSOR else (row, k // width)
            s = float(stored.scale[at])
            lowest = 1 - 2 ** (bits - 1)
            highest = 2 ** (bits - 1) - 1
            if stored.zero_point is not None:
                lowest = -int(stored.zero_point[at])
                highest = lowest + 2**bits - 1
            v = w[row, k] / s
            q = min(max(np.rint(v), lowest), highest)
            inside = lowest <= v <= highest
            expected_scale[at] += g[row, k] * ((q - v) if inside else q) * gain
            assert found[row, k] == (g[row, k] if inside else 0)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), expected_scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("broken", ["weight", "scale"])
def test_what_a_diverged_training_left_is_not_stored(broken):
    weight = some_weight()
    quantizer = ESTIMATORS["lsq"](Absmax(8), weight)
    with torch.no_grad():
        {"weight": weight, "scale": quantizer.scale}[broken][0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        quantizer.stored(weight)


def test_a_step_that_crossed_zero_is_pushed_the_other_way():
    weight, scheme = some_weight(), Absmax(4)
    gradients = []
    for sign in (1, -1):
        quantizer = ESTIMATORS["lsq"](scheme, weight)
        with torch.no_grad():
            quantizer.scale *= 0.6 * sign
        sent_back(quantizer, weight)
        gradients.append(quantizer.scale.grad.clone())
    assert torch.equal(gradients[0], -gradients[1]) and gradients[0].abs().min() > 0


def test_a_step_that_training_pushed_to_zero_still_stores():
    weight = some_weight()
    quantizer = ESTIMATORS["lsq"](Absmax(8), weight)
    with torch.no_grad():
        quantizer.scale.zero_()
    assert quantizer(weight).isfinite().all()
