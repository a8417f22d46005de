"""Static int8 without training."""

import pytest
import torch

import lowbit
from lowbit import InputError, QatOptions, UsageError
from lowbit.calibration.observers import OBSERVERS
from tests.models import make, output

IDS = torch.arange(0, 160).reshape(10, 16) * 7 % 200


@pytest.mark.parametrize("ranges", [name for name in OBSERVERS if name != "learned"])
@pytest.mark.parametrize(
    ("name", "most"),
    [("bert", 0.05), ("gpt2", 0.05), ("llama-untied", 0.1)],  # products of two layers err more
)
def test_a_calibrated_model_computes_nearly_the_same(name, most, ranges):
    model = make(name)
    expected = output(model)
    options = QatOptions(ranges=ranges, symmetric=ranges != "minmax")
    lowbit.quantize(model, "int8-static", calibration=IDS, options=options)
    assert ((output(model) - expected).norm() <= most * expected.norm()).item()


def test_inputs_may_be_mappings_and_the_range_is_that_of_what_was_seen():
    model = make("bart")
    seen = []
    layer = model.model.encoder.layers[0].fc1
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batches = [{"input_ids": IDS[:4], "decoder_input_ids": IDS[:4, :5]}]
    with torch.no_grad():
        model(**batches[0])
    handle.remove()
    lowbit.quantize(
        model,
        "int8-static",
        calibration=batches,
        options=QatOptions(ranges="minmax", symmetric=True),
    )
    found = model.model.encoder.layers[0].fc1.static_input()
    assert found.scale == pytest.approx(seen[0].abs().max().item() / 127, rel=1e-5)


def test_the_float_model_is_left_alone_where_calibration_fails():
    model = make("bert")
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(InputError, match="holds no batch"):
        lowbit.quantize(model, "int8-static", calibration=[])
    assert {name: type(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(
    ("recipe", "data", "sentence"),
    [
        ("int8", IDS, "has no static activations"),
        ("int8-static", IDS.float(), "takes token ids"),
        ("int8-static", IDS[0], r"\[16\]"),
        ("int8-static", None, "give calibration data"),
    ],
)
def test_wrong_use_gets_one_sentence(recipe, data, sentence):
    with pytest.raises(UsageError, match=sentence):
        lowbit.quantize(make("bert"), recipe, calibration=data)
