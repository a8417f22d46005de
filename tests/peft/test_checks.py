"""What cannot be trained on a quantized base is told before the model changes."""

import pytest
import torch

pytest.importorskip("peft", reason="the package peft is absent")

from peft import get_peft_model

import lowbit
from lowbit.peft import load
from lowbit.peft.layers import LoraQuantLinear
from tests.conversion.test_experts import mixtral
from tests.models import make
from tests.peft.adapted import IDS, adapted, config, near, quantized, randomized


def static(model, recipe="int8-static"):
    lowbit.quantize(model, recipe, False, IDS)
    return model


@pytest.mark.parametrize(
    ("name", "recipe", "options", "sentence"),
    [
        ("gpt2", "int4", {"init_lora_weights": "pissa"}, "'pissa' changes the weights of the base"),
        ("gpt2", "int4", {"init_lora_weights": "olora"}, "use True, False, 'gaussian'"),
        ("gpt2", "int4-all", {"modules_to_save": ["lm_head"]}, "lm_head is quantized"),
        ("gpt2", "int4-all", {"trainable_token_indices": [1]}, "transformer.wte is quantized"),
        ("bert-classifier", "int4-all", {"task_type": "SEQ_CLS"}, "classifier is quantized"),
    ],
)
def test_what_would_change_the_base_is_refused(name, recipe, options, sentence):
    model = quantized(name, recipe)
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(lowbit.UsageError, match=sentence):
        get_peft_model(model, config(**options))
    assert [name for name, _ in model.named_modules()] == modules


def test_what_is_float_is_trained_whole():
    model = quantized("bert-classifier", "int4")
    model = get_peft_model(model, config(task_type="SEQ_CLS"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("classifier.modules_to_save" in name for name in trained)


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "gate_up_proj holds the weights of"),
        ({"target_modules": ["q_proj", "down_proj"]}, "down_proj holds the weights of experts"),
        ({"target_modules": r".*experts\.down_proj"}, "down_proj holds the weights of experts"),
        (
            {"target_parameters": ["0.self_attn.q_proj.weight"]},
            "0.self_attn.q_proj.weight is quantized.* name model.layers.0.self_attn.q_proj in",
        ),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_experts_and_quantized_parameters_take_no_adapters(targets, sentence, beside):
    model = mixtral()
    lowbit.quantize(model, "int8", progress=False)
    if beside:  # another adapter
        model = get_peft_model(model, config(target_modules=["q_proj"]))
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(lowbit.UsageError, match=sentence) as raised:
        options = config(**{"target_modules": []} | targets)
        model.add_adapter("other", options) if beside else get_peft_model(model, options)
    assert "\n" not in str(raised.value)
    assert [name for name, _ in model.named_modules()] == modules


def test_an_adapter_of_float_experts_is_told_on_quantized_ones(tmp_path):
    """Beside quantized layers experts that are kept float take PEFT's own adapters."""
    others = lowbit.PRESETS["int8"].to_dict()["rules"]
    recipe = {"rules": [{"match": "@experts", "keep": True}, *others]}
    model = mixtral()
    lowbit.quantize(model, recipe, progress=False)
    options = config(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    model = randomized(get_peft_model(model, options))
    model(input_ids=IDS % 64)[0].sum().backward()
    learned = {n.split(".")[-4]: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert learned.keys() == {"q_proj", "experts"}
    assert all(gradient.abs().sum() > 0 for gradient in learned.values())
    model.save_pretrained(tmp_path)
    base = mixtral()
    lowbit.quantize(base, "int8", progress=False)
    modules = [name for name, _ in base.named_modules()]
    with pytest.raises(lowbit.UsageError, match="down_proj holds the weights of experts"):
        load(base, tmp_path)
    assert [name for name, _ in base.named_modules()] == modules


@pytest.mark.parametrize("recipe", ["int8-static", "int4-static", "int8-requantized"])
def test_static_activations_take_adapters_but_train_none(recipe, tmp_path):
    adapted("gpt2", "int8").save_pretrained(tmp_path)
    with pytest.raises(lowbit.UsageError, match="activations, whose scale was found without"):
        get_peft_model(static(make("gpt2"), recipe), config())
    with pytest.raises(lowbit.UsageError, match="activations, whose scale was found without"):
        load(static(make("gpt2"), recipe), tmp_path, is_trainable=True)
    model = load(static(make("gpt2"), recipe), tmp_path)
    with torch.no_grad(), model.disable_adapter():
        plain = model(input_ids=IDS)[0]
    assert not torch.equal(model(input_ids=IDS)[0], plain)
    seen = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraQuantLinear)}
    assert len(layers) == 8
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, given, y, name=name: seen.update({name: (*given, y)}))
    with torch.no_grad():
        model(input_ids=IDS)
        for name, layer in layers.items():
            x, y = seen[name]
            added = x.double() @ layer.lora_A.default.weight.double().t()
            added = 2 * added @ layer.lora_B.default.weight.double().t()
            assert added.abs().max() > 0.01 and near(y, layer.base_layer(x) + added, 1e-5)
    model.save_pretrained(tmp_path / "again")
    again = load(static(make("gpt2"), recipe), tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS)[0], model(input_ids=IDS)[0])
