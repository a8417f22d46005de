"""Adapters are saved as PEFT saves them, and loaded on the base that they fit."""

import json

import pytest
import torch

pytest.importorskip("peft", reason="the package peft is absent")

from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.peft import load
from tests.models import make
from tests.peft.adapted import IDS, adapted, config, near, quantized, with_twin

TENSORS = "adapter_model.safetensors"


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


def test_an_adapter_is_that_of_the_float_twin_in_every_byte(tmp_path):
    model, twin = with_twin("gpt2")
    model.save_pretrained(tmp_path / "ours")
    twin.save_pretrained(tmp_path / "float")
    ours, theirs = (load_file(tmp_path / n / TENSORS) for n in ("ours", "float"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (
        json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("ours", "float")
    )
    for described in (ours, theirs):
        described["target_modules"].sort()
    assert ours == theirs


@pytest.mark.parametrize("by", [load, PeftModel.from_pretrained])
def test_a_loaded_adapter_computes_the_same_on_the_quantized_and_the_float_base(by, tmp_path):
    model, twin = with_twin("gpt2")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(by(quantized("gpt2"), str(tmp_path))), logits(model))
    on_float = by(quantized("gpt2").dequantize(), str(tmp_path))
    assert near(logits(on_float), logits(twin), 1e-6)


def test_the_classes_of_peft_find_the_quantized_base_by_its_folder(tmp_path):
    quantized("gpt2").save_pretrained(tmp_path / "base")
    base = type(make("gpt2")).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, config(task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert again.is_quantized and torch.equal(logits(again), logits(model.eval()))


def test_a_loaded_adapter_is_trained_on_where_that_is_asked_for(tmp_path):
    adapted("gpt2").save_pretrained(tmp_path)
    for is_trainable in (False, True):
        model = load(quantized("gpt2"), tmp_path, is_trainable=is_trainable)
        assert any(p.requires_grad for p in model.parameters()) == is_trainable


@pytest.mark.parametrize("is_quantized", [True, False])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(n_embd=64), r"one of another base: lora_A.weight of .*c_attn has .* \[4, 128\]"),
        (dict(n_layer=1), "another base: it changes transformer.h.1.attn.c_attn, which this GPT2"),
        (dict(n_inner=64), r"lora_B.weight of .*c_fc has the shape \[512, 4\].* \[64, 128\]"),
    ],
)
def test_an_adapter_of_another_base_is_told_before_the_base_changes(
    change, sentence, is_quantized, tmp_path
):
    adapted("gpt2").save_pretrained(tmp_path)
    small = make("gpt2")
    for key, value in change.items():
        setattr(small.config, key, value)
    other = type(small)(small.config).eval()
    if is_quantized:
        lowbit.quantize(other, "int4", progress=False)
    modules, before = [name for name, _ in other.named_modules()], logits(other)
    with pytest.raises(lowbit.InputError, match=sentence):
        load(other, tmp_path)
    assert [name for name, _ in other.named_modules()] == modules
    assert torch.equal(logits(other), before)


@pytest.mark.parametrize("shape", [(), (4,), (128,), (4, 128, 1)])
@pytest.mark.parametrize("part", ["A", "B"])
def test_an_adapter_that_is_no_matrix_is_told_before_the_base_changes(part, shape, tmp_path):
    adapted("gpt2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    name = next(name for name in tensors if name.endswith(f"c_attn.lora_{part}.weight"))
    save_file(tensors | {name: torch.ones(shape)}, tmp_path / TENSORS)
    base = quantized("gpt2")
    modules = [name for name, _ in base.named_modules()]
    with pytest.raises(lowbit.InputError, match=f"damaged: lora_{part}.weight .* not a matrix"):
        load(base, tmp_path)
    assert [name for name, _ in base.named_modules()] == modules


def test_a_base_of_another_name_is_told(tmp_path, recwarn):
    model = make("gpt2")
    model.name_or_path = model.config._name_or_path = "folder/one"
    get_peft_model(model, config(fan_in_fan_out=True)).save_pretrained(tmp_path)
    base = quantized("gpt2")
    base.name_or_path = "other/one"
    recwarn.clear()
    load(base, tmp_path)
    assert not [w for w in recwarn if "was trained on" in str(w.message)]
    base = quantized("gpt2")
    base.name_or_path = "folder/two"
    with pytest.warns(UserWarning, match="trained on folder/one, and this base is folder/two"):
        load(base, tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = 3
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    base = quantized("gpt2")
    base.name_or_path = "folder/two"
    with pytest.warns(UserWarning, match="trained on 3, and this base is folder/two"):
        load(base, tmp_path)


def test_what_is_no_adapter_is_told(tmp_path):
    with pytest.raises(lowbit.InputError, match="cannot be read as an adapter of PEFT: "):
        load(quantized("gpt2"), tmp_path)
    adapted("gpt2").save_pretrained(tmp_path)
    stored = tmp_path / TENSORS
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(lowbit.InputError, match="cannot be read as an adapter of PEFT: "):
        load(quantized("gpt2"), tmp_path)
    stored.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(lowbit.InputError, match="holds a pickled adapter"):
        load(quantized("gpt2"), tmp_path)
