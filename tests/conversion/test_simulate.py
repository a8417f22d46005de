import numpy as np
import pytest
import torch
from torch import nn

import lowbit
from lowbit import Absmax, Binary, InputError, UsageError, ZeroPoint
from lowbit.formats import CHANNEL, TENSOR, group
from tests.models import make
from tests.oracles.affine import asymmetric, spread, symmetric


def absmax(weight, size):
    scale, codes = symmetric(weight, 8, size)
    return codes.astype(np.float32) * spread(scale, weight.shape, size).astype(np.float32)


def zero_point(weight, size):
    scale, zero, codes = asymmetric(weight, 8, size)
    centred = codes.astype(np.float32) - spread(zero, weight.shape, size)
    return centred * spread(scale, weight.shape, size).astype(np.float32)


def matrix(values, transposed=False):
    """As [out, in]; a vector is one row."""
    return values.T if transposed else values.reshape(len(values) if values.ndim > 1 else 1, -1)


def disturbed(name):
    """A model whose norms and biases are not all ones and zeros."""
    model = make(name)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) / 8
    return model, {n: p.detach().numpy().copy() for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llama-tied"])
@pytest.mark.parametrize(("scheme", "oracle"), [("absmax", absmax), ("zero-point", zero_point)])
def test_every_parameter_becomes_what_numpy_rounds_it_to(name, scheme, oracle):
    model, before = disturbed(name)
    errors = lowbit.simulate(model, scheme)
    assert list(errors) == list(before)
    for n, parameter in model.named_parameters():
        wanted = oracle(matrix(before[n]), "tensor").reshape(before[n].shape)
        np.testing.assert_array_equal(parameter.detach().numpy(), wanted)
        mse = np.square(before[n].astype(np.float64) - wanted).mean()
        np.testing.assert_allclose(errors[n], mse, rtol=1e-12)


@pytest.mark.parametrize(
    ("scheme", "oracle", "size"),
    [
        (Absmax(8), absmax, "channel"),
        (ZeroPoint(8), zero_point, "channel"),
        (ZeroPoint(8, group(24)), zero_point, 24),
    ],
)
def test_a_scale_is_shared_along_the_inputs_however_a_module_stores_its_weight(
    scheme, oracle, size
):
    model, before = disturbed("gpt2")
    lowbit.simulate(model, scheme)
    for n, parameter in model.named_parameters():
        conv1d = parameter.ndim == 2 and "transformer.h." in n
        wanted = oracle(matrix(before[n], conv1d), size)
        np.testing.assert_array_equal(matrix(parameter.detach().numpy(), conv1d), wanted)


def test_a_shared_parameter_is_rounded_once_and_stays_shared():
    model = make("gpt2")
    errors = lowbit.simulate(model, "absmax")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "transformer.wte.weight" in errors and "lm_head.weight" not in errors


def test_the_model_keeps_its_dtype_and_runs():
    model = make("gpt2").to(torch.bfloat16)
    lowbit.simulate(model, "zero-point")
    assert all(p.dtype == torch.bfloat16 and p.requires_grad for p in model.parameters())
    assert torch.isfinite(model(torch.arange(5)[None]).logits).all()


class Odd(nn.Module):
    """A convolution kernel, a scalar, and a matrix in another memory order."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 5))
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.turned = nn.Parameter(torch.randn(6, 4).t())


@pytest.mark.parametrize("scheme", [Absmax(8, TENSOR), Binary(2, CHANNEL)])
def test_parameters_of_any_shape_are_rounded_as_matrices(scheme):
    model = Odd()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    errors = lowbit.simulate(model, scheme)
    for n, parameter in model.named_parameters():
        values = before[n].reshape(1, 1) if n == "gain" else before[n].flatten(1)
        wanted = lowbit.dequantize(scheme.quantize(values)).reshape(before[n].shape)
        assert torch.equal(parameter.detach(), wanted)
        assert errors[n] == pytest.approx((before[n] - wanted).double().square().mean().item())


def test_a_group_larger_than_a_vector_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.Linear(64, 16), nn.LayerNorm(16))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(UsageError, match="group size 32 is larger than the 16 values .* of 0.bias"):
        lowbit.simulate(model, ZeroPoint(4, group(32)))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_parameter_that_is_not_finite_is_named_and_nothing_changes():
    model, before = disturbed("gpt2")
    model.transformer.ln_f.bias.data[3] = torch.nan
    with pytest.raises(InputError, match=r"transformer.ln_f.bias: 1 of 128 weights"):
        lowbit.simulate(model, "absmax")
    np.testing.assert_array_equal(
        model.transformer.wte.weight.detach().numpy(), before["transformer.wte.weight"]
    )


def test_an_unknown_scheme_and_a_quantized_model_are_wrong_use():
    model = make("gpt2")
    with pytest.raises(UsageError, match="'binary' is unknown: use absmax, zero-point"):
        lowbit.simulate(model, "binary")
    lowbit.quantize(model, "int8", progress=False)
    with pytest.raises(UsageError, match="already quantized"):
        lowbit.simulate(model, "absmax")
