"""LoRA beside quantized layers computes and learns what it does beside float ones."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("peft", reason="the package peft is absent")

from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Trainer, TrainingArguments

import lowbit
from lowbit.nn import QuantLinear, QuantModule
from tests.models import make
from tests.peft.adapted import IDS, adapted, config, inputs, near, quantized, randomized, with_twin


def gradients(model):
    """Of every parameter that has one, by name, after a step back from the logits."""
    model.zero_grad()
    y = model(**inputs(model))[0]
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("gpt2", "int4"),
        ("gpt2", "bcq3"),
        ("gpt2", "int4-k"),
        ("llama-tied", "int8-all"),
        ("bert", "int4"),
        ("t5", "int8"),
    ],
)
def test_outputs_and_gradients_are_those_of_the_float_twin(name, recipe):
    model, twin = with_twin(name, recipe)
    (y, found), (of_twin, wanted) = gradients(model), gradients(twin)
    assert near(y, of_twin)
    assert found.keys() == wanted.keys() and all("lora_" in name for name in found)
    assert all(near(found[name], wanted[name], 1e-3) for name in wanted)
    with torch.no_grad():  # as inference does: several layers in one call
        assert near(model(**inputs(model))[0], of_twin)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True, "lora_bias": True}])
def test_variants_are_those_of_the_float_twin(options):
    model, twin = with_twin("gpt2", **options)
    (y, found), (of_twin, wanted) = gradients(model), gradients(twin)
    assert near(y, of_twin) and found.keys() == wanted.keys()
    assert all(near(found[name], wanted[name], 1e-3) for name in wanted)


def test_an_embedding_is_adapted_as_the_float_one_is():
    model, twin = with_twin("gpt2", "int8-all", target_modules=["wpe", "c_attn"])
    (y, found), (of_twin, wanted) = gradients(model), gradients(twin)
    assert near(y, of_twin) and found.keys() == wanted.keys()
    name = "base_model.model.transformer.wpe.lora_embedding_B.default"
    assert near(found[name], wanted[name], 1e-3)


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-dynamic", "bcq2-dynamic", "int8"])
def test_gradients_pass_straight_through_quantized_activations(recipe):
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(64, 48))
    lowbit.quantize(holder, recipe, progress=False)
    weight = lowbit.dequantize(holder[0].stored_weight).double().numpy()
    model = randomized(get_peft_model(holder, config(target_modules=["0"])))
    A, B = (getattr(model.base_model.model[0], f"lora_{n}").default.weight for n in "AB")
    x, above = torch.randn(5, 64, requires_grad=True), torch.randn(5, 48)
    model(x).backward(above)
    a, b, rows, g = (t.detach().double().numpy() for t in (A, B, x, above))
    s = 8 / 4
    for found, wanted in (
        (x.grad, g @ (weight + s * b @ a)),
        (A.grad, s * b.T @ g.T @ rows),
        (B.grad, s * g.T @ rows @ a.T),
    ):
        error = np.abs(found.double().numpy() - wanted)
        assert (error <= 1e-5 * np.abs(wanted).max()).all()


def test_the_base_stays_packed_and_frozen():
    model = adapted("gpt2").train()
    layers = [m for m in model.modules() if isinstance(m, QuantModule)]
    before = [m.stored_weight.tensors() for m in layers]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        gradients(model)
        optimizer.step()
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    if layers[0].choose()[0].name != "reference":
        assert all(m.packed is not None for m in layers)
        assert all(b.is_meta for m in layers for b in m.buffers())
    for module, tensors in zip(layers, before, strict=True):
        after = module.stored_weight.tensors()
        assert all(torch.equal(after[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    model = adapted("gpt2")
    plain = gradients(model.eval())[1]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients(model)[1]
    assert again.keys() == plain.keys()
    assert all(near(again[name], plain[name]) for name in plain)


def test_the_trainer_of_transformers_takes_adapters(tmp_path):
    model = get_peft_model(quantized("gpt2", "int8-dynamic"), config(task_type="CAUSAL_LM"))
    rows = [{"input_ids": row, "labels": row} for row in IDS.repeat(8, 1)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=8, learning_rate=0.05, report_to=[], use_cpu=True
    )
    with torch.no_grad():
        before = model(input_ids=IDS, labels=IDS).loss
    Trainer(model, arguments, train_dataset=rows).train()
    model.eval()
    with torch.no_grad():
        assert model(input_ids=IDS, labels=IDS).loss <= 0.95 * before
    assert (tmp_path / "checkpoint-8" / "adapter_model.safetensors").exists()


def test_an_adapter_can_be_put_into_the_model_itself_as_transformers_does():
    model = quantized("gpt2")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["c_attn"]), model)
    assert isinstance(model.transformer.h[0].attn.c_attn.base_layer, QuantLinear)
    with pytest.raises(lowbit.InputError, match="already quantized"):
        lowbit.quantize(model, "int4")


def test_all_linear_layers_are_those_of_the_float_model():
    for name in ("gpt2", "llama-untied", "t5"):
        targets = [
            get_peft_model(model, config()).peft_config["default"].target_modules
            for model in (quantized(name, "int4-all"), make(name))
        ]
        assert targets[0] == targets[1]


def test_a_second_adapter_is_put_beside_the_first():
    model = adapted("gpt2")
    first = model(input_ids=IDS)[0]
    model.add_adapter("second", config())
    model.set_adapter("second")
    with model.disable_adapter():
        plain = model(input_ids=IDS)[0]
    assert near(model(input_ids=IDS)[0], plain) and not near(first, plain, 1e-2)
    model.set_adapter("default")
    assert torch.equal(model(input_ids=IDS)[0], first)


def test_a_float_model_is_adapted_by_peft_alone():
    model = get_peft_model(make("gpt2"), config(fan_in_fan_out=True))
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    assert layers and all(type(layer).__module__.startswith("peft.") for layer in layers)


def test_no_attribute_is_one_that_peft_takes_for_that_of_another_library():
    for module in quantized("gpt2", "int8-all").modules():
        if isinstance(module, QuantModule):
            for name in ("qweight", "compute_dtype", "W_q", "state", "infeatures", "codebooks"):
                assert not hasattr(module, name)


def test_what_a_copy_learns_the_original_does_not():
    model = adapted("gpt2")
    y = model(input_ids=IDS)[0]
    randomized(copy.deepcopy(model), seed=1)(input_ids=IDS)
    assert torch.equal(model(input_ids=IDS)[0], y)
