"""A module that is replaced is replaced wherever the module around it keeps it."""

import copy

import pytest
import torch
from torch import nn

import lowbit

X = torch.arange(128).reshape(2, 64) / 100


class Listed(nn.Module):
    """Its forward pass goes through a plain list, beside which its children are registered."""

    def __init__(self, kind):
        super().__init__()
        self.layers = kind([nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)])
        for i, layer in enumerate(self.layers):
            self.add_module(str(i), layer)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def listed(kind):
    torch.manual_seed(0)
    return Listed(kind).eval()


def through_children(model, x):
    for child in model.children():
        x = child(x)
    return x


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_child_in_a_plain_list_is_quantized_and_restored_there(kind):
    model = listed(kind)
    wanted = model(X)
    lowbit.quantize(model, "int8-all", progress=False)
    assert all(a is b for a, b in zip(model.layers, model.children(), strict=True))
    assert 0 < (model(X) - wanted).norm() < 0.02 * wanted.norm()
    assert torch.equal(copy.deepcopy(model)(X), through_children(model, X))
    lowbit.restore_float(model)
    assert all(a is b for a, b in zip(model.layers, model.children(), strict=True))
    assert isinstance(model.layers[0], nn.Linear)


def test_a_saved_module_with_a_plain_list_is_loaded_exactly(tmp_path):
    model = listed(list)
    lowbit.quantize(model, "int8-all", progress=False)
    lowbit.save(model, tmp_path / "saved")
    loaded = listed(list)
    lowbit.load(loaded, tmp_path / "saved")
    assert torch.equal(loaded(X), model(X))


def test_training_runs_through_the_fake_quantized_children_of_a_plain_list():
    model = listed(list)
    wanted = model(X)
    lowbit.prepare_qat(model, "int4-all")
    assert not torch.equal(model(X), wanted)
    lowbit.finish_qat(model)
    assert torch.equal(model(X), through_children(model, X))
