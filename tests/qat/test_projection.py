"""A model that trains towards binary codes: its float weights and its codes are one model."""

import pytest
import torch

import lowbit
from lowbit import UsageError
from lowbit.conversion.module_weights import matrix
from lowbit.conversion.recipe import Recipe, Rule
from lowbit.formats import CHANNEL, FORMATS
from lowbit.qat.codes import Mode
from lowbit.qat.prepare import fake_quantized, finish_qat
from lowbit.qat.projection import PARTS, prepare_codes
from lowbit.schemes import Binary, Clustered
from tests.combinations import some
from tests.models import make, output

GREEDY = Binary(3, CHANNEL, offset=False, solver="greedy")
RECIPE = Recipe((Rule("@embedding", GREEDY), Rule("@linear", GREEDY)), "greedy")
CLUSTERS = Clustered(Binary(4, CHANNEL, offset=False, nested=True), ratio=2.0)
CLUSTERED = Recipe((Rule("@embedding", CLUSTERS), Rule("@linear", GREEDY)), "clustered")


def moved(model, seed=0):
    """As a few steps of training leave it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "recipe", "mode"),
    some(["marian", "gpt2"], [RECIPE, CLUSTERED], Mode),  # tied four times; transposed
    ids=lambda value: getattr(value, "name", value),
)
def test_float_weights_and_stored_codes_are_the_same_model(name, recipe, mode):
    model = make(name)
    weights = prepare_codes(model, recipe)
    moved(model)
    for weight in weights:
        weight.enter(mode)
    moved(model, 1)
    for weight in weights:
        weight.sync()
    before = output(model)
    for weight in weights:
        weight.settle()
    assert torch.equal(output(model), before)
    floats = {d: m.matrix().detach().clone() for d, m in fake_quantized(model).items()}
    finish_qat(model, progress=False)
    stored = {n: m.stored_weight for n, m in model.named_modules() if hasattr(m, "stored_weight")}
    assert stored.keys() == floats.keys()
    for module, q in stored.items():
        assert torch.equal(FORMATS[q.layout.format].decode(q), floats[module]), module
    torch.testing.assert_close(output(model), before, rtol=1e-4, atol=1e-4)


def test_weights_that_are_shared_are_held_once_and_belong_to_a_part():
    model = make("marian")
    weights = prepare_codes(model, RECIPE)
    assert len(fake_quantized(model)) == len(weights) + 3
    assert {w.part for w in weights} == set(PARTS)
    assert [w.name for w in weights if w.part == "embedding"] == ["model.shared"]
    assert all(("decoder." in w.name) == (w.part == "decoder") for w in weights)
    shared = {id(m.weight_quantizer) for n, m in fake_quantized(model).items() if "layers" not in n}
    assert len(shared) == 1
    names = [n for n in model.state_dict() if n.endswith("weight_quantizer.planes")]
    assert len(names) == len(weights)


@pytest.mark.parametrize("recipe", [RECIPE, CLUSTERED], ids=lambda recipe: recipe.name)
def test_projecting_is_what_quantizing_the_moved_weights_is(recipe):
    model, other = make("marian"), make("marian")
    moved(model), moved(other)
    for weight in prepare_codes(model, recipe):
        weight.project()
    lowbit.quantize(other, recipe)
    quantized = {n: m for n, m in other.named_modules() if hasattr(m, "stored_weight")}
    for name, module in fake_quantized(model).items():
        wanted = lowbit.dequantize(quantized[name].stored_weight)
        assert torch.equal(matrix(module, module.weights), wanted), name


def test_only_binary_schemes_are_projected():
    with pytest.raises(UsageError, match="needs the scheme binary, not absmax"):
        prepare_codes(make("marian"), "int8")
