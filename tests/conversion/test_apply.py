"""Quantizing a model in place."""

import copy

import numpy as np
import pytest
import torch

import lowbit
from lowbit import Absmax, InputError, Recipe, Rule, ZeroPoint
from lowbit.formats import CHANNEL, group
from tests.combinations import some
from tests.decoded import (
    decoded_model,
    errors_without_a_bias,
    errors_without_a_layer,
    relative,
)
from tests.models import MODELS, make, output

# The relative errors of the output that are allowed: from the float model, and from the float model
# with the decoded weights. Of 8 bits they are 3 times those seen. Four bits err by up to 0.4 from
# the float model.
BOUNDS = {
    "int8": (0.09, 1e-5),
    "int8-dynamic": (0.14, 0.11),
    "int8-zeropoint-all": (0.09, 1e-5),
    "int4": (0.6, 1e-5),
    "bcq4": (0.6, 1e-5),
}


@pytest.mark.parametrize(("name", "recipe"), some(MODELS, BOUNDS))
def test_the_quantized_model_computes_nearly_the_same(name, recipe):
    model = make(name)
    expected = output(model)
    lowbit.quantize(model, recipe)
    from_float, from_decoded = BOUNDS[recipe]
    found = output(model)
    assert relative(found, expected) <= from_float
    assert relative(found, output(decoded_model(model, name))) <= from_decoded


@pytest.mark.parametrize("name", MODELS)
def test_a_lost_layer_and_a_lost_bias_exceed_the_bounds(name):
    model = make(name)
    expected = output(model)
    lowbit.quantize(model, "int8")
    from_float, from_decoded = BOUNDS["int8"]
    for layer, error in errors_without_a_layer(model, expected):
        assert error > from_float, layer
    for layer, error in errors_without_a_bias(model, output(decoded_model(model, name))):
        assert error > from_decoded, layer


@pytest.mark.parametrize("name", MODELS)
def test_weight_only_equals_the_float_model_with_decoded_weights(name):
    """An oracle without our modules: the float model, its weights rounded by NumPy."""
    model = make(name)
    rounded = copy.deepcopy(model)
    linear = (torch.nn.Linear,) if name != "gpt2" else ()
    heads = {id(rounded.get_output_embeddings())}
    for module in rounded.modules():
        if type(module) in linear and id(module) not in heads:
            module.weight.data = torch.from_numpy(absmax8(module.weight.detach().numpy()))
        elif type(module).__name__ == "Conv1D":
            module.weight.data = torch.from_numpy(absmax8(module.weight.detach().numpy().T).T)
    if name in ("bert-classifier", "distilbert"):
        rounded.classifier.weight.data = model.classifier.weight.data
    if name == "distilbert":
        rounded.pre_classifier.weight.data = model.pre_classifier.weight.data
    if name == "bert-mlm":
        transform = model.cls.predictions.transform.dense.weight
        rounded.cls.predictions.transform.dense.weight.data = transform.data
    lowbit.quantize(model, "int8")
    torch.testing.assert_close(output(model), output(rounded), rtol=1e-5, atol=1e-5)


def absmax8(weight):
    """s = max|w| / 127 per row as float16, w ≈ s · clip(round(w / s))."""
    scale = (np.abs(weight).max(1, keepdims=True) / np.float32(127)).astype(np.float16)
    scale = scale.astype(np.float32)
    return np.clip(np.round(weight / scale), -127, 127).astype(np.float32) * scale


def test_the_result_holds_coverage_sizes_and_errors():
    model = make("gpt2")
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().numpy().T.copy()
    before = sum(p.numel() for p in model.parameters()) * 4
    result = lowbit.quantize(model, "int8")
    assert result.before.stored_bytes == before
    assert result.after.stored_bytes < before
    assert set(result.errors) == {d.name for d in result.plan.quantized}
    error = result.errors["transformer.h.0.mlp.c_fc"]
    expected = np.mean((weight.astype(np.float64) - absmax8(weight)) ** 2)
    assert error.mean_squared_error == pytest.approx(expected, rel=1e-9)
    assert error.signal_to_noise_db == pytest.approx(
        10 * np.log10(np.mean(weight.astype(np.float64) ** 2) / expected), rel=1e-9
    )
    assert result.to_dict()["coverage"]["share"] == result.plan.share


def test_a_model_with_a_bad_weight_is_left_as_it_was():
    model = make("bert")
    model.encoder.layer[1].output.dense.weight.data[0, 0] = torch.inf
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(InputError, match=r"encoder.layer.1.output.dense.weight: 1 of 24576"):
        lowbit.quantize(model, "int4")
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_mixed_recipes_give_each_module_its_scheme():
    model = make("bert")
    recipe = Recipe(
        (
            Rule("*.attention.*", Absmax(8, CHANNEL), "dynamic"),
            Rule("@linear", ZeroPoint(3, group(32))),
        )
    )
    lowbit.quantize(model, recipe)
    query = model.encoder.layer[0].attention.self.query
    dense = model.encoder.layer[0].intermediate.dense
    assert (query.layout.bits, query.activations) == (8, "dynamic")
    assert (dense.layout.bits, str(dense.layout.granularity)) == (3, "group:32")
    assert type(model.embeddings.word_embeddings) is torch.nn.Embedding


def test_a_deep_copy_is_a_model_of_its_own():
    model = make("gpt2")
    lowbit.quantize(model, "int4-all")
    twin = copy.deepcopy(model)
    assert twin.lm_head.tied_to is twin.transformer.wte
    expected = output(model)
    twin.transformer.wte.codes.zero_()
    assert torch.equal(output(model), expected)
    assert not torch.equal(output(twin), expected)


def test_biases_and_inputs_still_get_gradients():
    model = make("bert")
    lowbit.quantize(model, "int8")
    embedded = torch.randn(1, 4, 128, requires_grad=True)
    model(inputs_embeds=embedded)[0].square().sum().backward()
    bias = model.encoder.layer[0].output.dense.bias
    assert embedded.grad.abs().sum() > 0 and bias.grad.abs().sum() > 0
