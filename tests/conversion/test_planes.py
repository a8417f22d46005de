"""The first planes of a nested model are the model that was stored with so many, on every path."""

import copy

import pytest
import torch
from torch import nn

import lowbit
from lowbit.conversion.recipe import Recipe, Rule
from lowbit.formats import group
from lowbit.formats.binary import prefix
from lowbit.kernels import ops
from lowbit.kernels.linear import KERNELS
from lowbit.kernels.selection import VARIABLE
from lowbit.nn import QuantEmbedding, QuantLinear, QuantModule
from lowbit.schemes import Binary
from tests.models import make, output
from tests.stored import Form
from tests.targets import parameters

FORM = Form("binary", 4, group(64), shift=True, nested=True)


@pytest.fixture(params=parameters(KERNELS["float"]))
def path(request, monkeypatch):
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


def nested(name, planes=3, rule="@linear"):
    scheme = Binary(planes, group(64), solver="greedy", nested=True)
    rules = [Rule(rule, scheme, activations="dynamic")]
    if rule == "*":
        rules = [Rule("@embedding", scheme), Rule("@linear", scheme, activations="dynamic")]
    model = make(name)
    lowbit.quantize(model, Recipe(tuple(rules)), progress=False)
    return model


def layer(q, bias, kind):
    return QuantLinear(q.layout, q.in_features, q.shape[0], bias, kind).hold(q)


@pytest.mark.parametrize("kind", ["float", "dynamic"])
def test_a_layer_is_that_of_its_first_planes(path, kind):
    q, bias = FORM.random(50, 200).q, nn.Parameter(torch.linspace(-1, 1, 50))
    whole = layer(q, bias, kind)
    for planes in (2, 1, 3, 4):
        whole.use_planes(planes)
        own = layer(prefix(q, planes), bias, kind)
        for rows in (1, 3, 40):
            x = torch.randn(rows, 200, generator=torch.Generator().manual_seed(rows))
            with torch.no_grad():
                assert torch.equal(whole(x), own(x)), (planes, rows)
        x = torch.randn(3, 200)
        gradients = []
        for m in (whole, own):
            given = x.clone().requires_grad_()
            m(given).sum().backward()
            gradients.append(given.grad)
        assert torch.equal(*gradients)


def test_a_table_and_the_head_tied_to_it_are_those_of_the_first_planes(path):
    q = FORM.random(60, 128).q
    table = QuantEmbedding(q.layout, 60, 128).hold(q)
    head = QuantLinear(q.layout, 128, 60, None, "dynamic").tie(table)
    ids, x = torch.tensor([[0, 59, 7]]), torch.randn(3, 128)
    for planes in (1, 2, 3, 4, 2):
        table.use_planes(planes)
        own = prefix(q, planes)
        assert torch.equal(table(ids), QuantEmbedding(own.layout, 60, 128).hold(own)(ids))
        assert torch.equal(head(x), layer(own, None, "dynamic")(x))


@pytest.mark.parametrize("name", ["gpt2", "bert", "bart"])
def test_a_model_is_that_of_its_first_planes(name, path):
    model = nested(name, rule="*")
    whole = output(model)
    for planes in (1, 2):
        lowbit.use_planes(model, planes)
        own = copy.deepcopy(model)
        for module in own.modules():
            if isinstance(module, QuantModule) and module.tied_to is None:
                assert f"first {planes} planes" in module.describe()
                q = prefix(module.stored_weight, planes)
                for stored in module.saved():
                    delattr(module, stored)
                module.planes_in_use, module.layout = None, q.layout
                for stored, tensor in q.tensors().items():
                    module.register_buffer(stored, tensor)
        assert torch.equal(output(model), output(own))
        assert not torch.equal(output(model), whole)
    lowbit.use_planes(model, 3)
    assert torch.equal(output(model), whole)


def test_all_planes_are_saved_whatever_is_in_use(tmp_path):
    model = nested("gpt2")
    whole, before = output(model), model.state_dict()
    lowbit.use_planes(model, 1)
    part = output(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(output(again), whole)
    lowbit.use_planes(again, 1)
    assert torch.equal(output(again), part)


def test_copies_and_the_float_model_are_those_of_the_planes_in_use():
    model = nested("bert")
    lowbit.use_planes(model, 2)
    part = output(model)
    assert torch.equal(output(copy.deepcopy(model)), part)
    layer = model.encoder.layer[0].output.dense
    weight = ops.dequantize(prefix(layer.stored_weight, 2))
    model.dequantize()
    assert torch.equal(model.encoder.layer[0].output.dense.weight, weight)


def test_what_is_not_nested_is_refused_and_nothing_changes():
    model = make("bert")
    plain, nest = Binary(2, group(64)), Binary(3, group(64), nested=True)
    rules = (Rule("*layer.1.output.dense", plain), Rule("@linear", nest))
    lowbit.quantize(model, Recipe(rules), progress=False)
    with pytest.raises(
        lowbit.UsageError, match="layer.1.output.dense is not nested, so 1 of its 2 planes"
    ):
        lowbit.use_planes(model, 1)
    assert all(m.planes_in_use is None for m in model.modules() if isinstance(m, QuantModule))
    lowbit.use_planes(model, 2)  # of which it has just so many
    assert {m.planes_in_use for m in model.modules() if isinstance(m, QuantModule)} == {None, 2}


@pytest.mark.parametrize("planes", [0, 4, -1])
def test_more_planes_than_there_are_and_none_are_refused(planes):
    with pytest.raises(lowbit.UsageError, match=f"1 and 3 for this model, not {planes}"):
        lowbit.use_planes(nested("bert"), planes)


def test_a_model_without_planes_is_refused():
    model = make("bert")
    lowbit.quantize(model, "int8", progress=False)
    with pytest.raises(lowbit.UsageError, match="has no binary codes"):
        lowbit.use_planes(model, 1)
