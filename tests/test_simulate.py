import numpy as np
import pytest
import torch
from torch import nn

import lowbit
from lowbit import Absmax, Binary, Granularity, InputError, UsageError, ZeroPoint
from lowbit.formats import CHANNEL, TENSOR, group
from tests.models import make

F16 = np.finfo(np.float16)


def stored(scale):
    """As the format keeps it: 1 in place of 0, float16 where that is a normal number."""
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    fits = (scale >= F16.tiny) & (scale <= F16.max)
    return scale.astype(np.float16).astype(np.float32) if fits.all() else scale


def absmax(w):
    scale = stored(np.abs(w).max(axis=-1, keepdims=True) / np.float32(127))
    return np.clip(np.rint(w / scale), -127, 127) * scale


def zero_point(w):
    low = np.minimum(w.min(axis=-1, keepdims=True), np.float32(0))
    high = np.maximum(w.max(axis=-1, keepdims=True), np.float32(0))
    scale = stored(high / np.float32(255) - low / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(w / scale) + zero, 0, 255) - zero) * scale


def per_tensor(rounded, w):
    return rounded(w.reshape(1, -1)).reshape(w.shape)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llama-tied"])
@pytest.mark.parametrize(("scheme", "rounded"), [("absmax", absmax), ("zero-point", zero_point)])
def test_every_parameter_becomes_what_numpy_rounds_it_to(name, scheme, rounded):
    model = make(name)
    # Vectors of norms and biases start as all ones or zeros.
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) / 8
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    errors = lowbit.simulate(model, scheme)
    assert list(errors) == list(before)
    for n, parameter in model.named_parameters():
        wanted = per_tensor(rounded, before[n])
        np.testing.assert_array_equal(parameter.detach().numpy(), wanted)
        mse = np.square(before[n].astype(np.float64) - wanted).mean()
        np.testing.assert_allclose(errors[n], mse, rtol=1e-12)


@pytest.mark.parametrize(("scheme", "rounded"), [(Absmax(8), absmax), (ZeroPoint(8), zero_point)])
def test_channels_are_outputs_even_where_a_conv1d_stores_them_last(scheme, rounded):
    model = make("gpt2")
    attention = model.transformer.h[0].attn.c_attn.weight
    table = model.transformer.wte.weight
    before = attention.detach().numpy().copy(), table.detach().numpy().copy()
    lowbit.simulate(model, scheme)
    np.testing.assert_array_equal(attention.detach().numpy(), rounded(before[0].T).T)
    np.testing.assert_array_equal(table.detach().numpy(), rounded(before[1]))


def test_a_shared_parameter_is_rounded_once_and_stays_shared():
    model = make("gpt2")
    errors = lowbit.simulate(model, "absmax")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "transformer.wte.weight" in errors and "lm_head.weight" not in errors


def test_the_model_stays_float_and_runs():
    model = make("gpt2").to(torch.bfloat16)
    lowbit.simulate(model, "zero-point")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())
    assert torch.isfinite(model(torch.arange(5)[None]).logits).all()


def test_absmax_is_idempotent():
    model = make("gpt2")
    lowbit.simulate(model, "absmax")
    once = {n: p.detach().clone() for n, p in model.named_parameters()}
    errors = lowbit.simulate(model, "absmax")
    assert all(torch.allclose(p, once[n], rtol=1e-3) for n, p in model.named_parameters())
    assert max(errors.values()) <= 1e-9


class Odd(nn.Module):
    """A convolution kernel, a scalar, and a matrix in another memory order."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 5))
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.turned = nn.Parameter(torch.randn(6, 4).t())


@pytest.mark.parametrize("scheme", [Absmax(8, TENSOR), Binary(2, CHANNEL)])
def test_parameters_of_any_shape_are_taken(scheme):
    model = Odd()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    errors = lowbit.simulate(model, scheme)
    for name, parameter in model.named_parameters():
        assert parameter.shape == before[name].shape
        mse = (parameter.detach() - before[name]).double().square().mean().item()
        assert mse == pytest.approx(errors[name], rel=1e-12, abs=1e-12)
    kernel = FORMATLESS[scheme.name](before["kernel"].flatten(1), scheme)
    assert torch.equal(model.kernel.detach().flatten(1), kernel)
