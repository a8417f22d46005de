"""What `explain` tells of a model, and that a slow path is warned of once."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import lowbit
from lowbit.fallbacks import SlowPathWarning, note
from lowbit.kernels import native
from lowbit.nn import QuantModule
from tests.models import make


def test_every_quantized_module_is_named_with_its_kernel():
    model = make("gpt2")
    lowbit.quantize(model, "int8", progress=False)
    explanation = lowbit.explain(model)
    named = {name for names in explanation.kernels.values() for name in names}
    assert named == {
        name for name, module in model.named_modules() if isinstance(module, QuantModule)
    }
    assert named and explanation.slow_paths == {}
    assert all(kernel in str(explanation) for kernel in explanation.kernels)


def test_a_slow_path_is_warned_of_once_and_counted_always():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.warns(SlowPathWarning, match="the long way round"):
        note(model[0], "it takes the long way round")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note(model[0], "it takes the long way round")
    explanation = lowbit.explain(model)
    assert explanation.slow_paths == {("0", "it takes the long way round"): 2}
    assert "2 times" in str(explanation)
    assert explanation.to_dict()["slow_paths"][0]["times"] == 2


def test_a_copy_begins_without_notes():
    model = nn.Linear(2, 2)
    note(model, "slow", warn=False)
    assert lowbit.explain(copy.deepcopy(model)).slow_paths == {}
    assert "nothing is quantized" in str(lowbit.explain(copy.deepcopy(model)))


@pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
def test_programs_are_told_with_what_torch_computes():
    model = make("bert")
    rules = [
        {"match": "*.0.output.dense", "keep": True},
        {"match": "@linear", "scheme": "absmax", "bits": 8, "activations": "dynamic"},
    ]
    lowbit.quantize(model, {"name": "mine", "rules": rules}, progress=False)
    lowbit.compile(model)
    assert lowbit.explain(model).programs == {}
    with torch.no_grad():
        model(input_ids=torch.ones(1, 5, dtype=torch.long))
    explanation = lowbit.explain(model)
    (name,) = explanation.programs
    (told,) = explanation.programs[name]
    assert told.arguments == ("input_ids",) and told.refused is None
    assert told.by_torch["linear.default"][0] == 1
    text = str(explanation)
    assert "native operations, 1 by torch" in text and "kB a token" in text
    (listed,) = explanation.to_dict()["programs"]
    assert json.loads(json.dumps(listed))["operations"] == told.operations
