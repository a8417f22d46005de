"""Which attributes count, and that each change of them is seen."""

import pytest
import torch
from torch import nn

import lowbit
from lowbit.nn.plain_attributes import PlainAttributes
from tests.models import make


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.names, self.by_name = 2.0, ["a"], {"a": {1}}
        self.function, self.limit = torch.relu, float("nan")
        self.held = torch.zeros(2)  # has its own way to be watched


CHANGES = [
    lambda m: setattr(m, "scale", 3.0),
    lambda m: setattr(m, "scale", True),
    lambda m: setattr(m, "scale", None),
    lambda m: delattr(m, "scale"),
    lambda m: m.names.append("b"),
    lambda m: m.by_name["a"].add(2),
    lambda m: setattr(m, "function", torch.tanh),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    module = Scaled()
    seen = PlainAttributes([module])
    assert seen.same()
    change(module)
    assert not seen.same()


def test_what_is_no_plain_attribute_does_not_count():
    module = Scaled()
    seen = PlainAttributes([module])
    module.held = torch.ones(2)
    module.train(False)
    module.forward = lambda x: x
    assert seen.same() and PlainAttributes([module]).same()
    del module.forward


def test_configs_count_and_using_a_model_changes_nothing():
    model = make("llama-tied")
    lowbit.quantize(model, "int8-dynamic", progress=False)
    seen = PlainAttributes(model.modules())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        model(ids, output_hidden_states=True)
    model.generate(ids, max_new_tokens=2, pad_token_id=0)
    assert seen.same()
    model.config.output_hidden_states = True
    assert not seen.same()
