"""Models with offsets and two-level scales are saved and loaded bit for bit, as version 2."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import lowbit
from lowbit import InputError, LowbitConfig, Recipe, UsageError
from lowbit.inspect.explain import explain

OFFSETS = Recipe.from_dict(
    {
        "rules": [
            {"match": "@head", "keep": True},
            {"match": "@linear", "scheme": "zero-point", "bits": 4, "zero": "float"},
        ]
    }
)


def small(width=256):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=width, n_layer=1, n_head=4, n_positions=32, vocab_size=50)
    ).eval()


def saved(folder, recipe):
    model = small()
    lowbit.quantize(model, recipe, progress=False)
    model.save_pretrained(folder)
    return model


IDS = torch.arange(12)[None]


@pytest.mark.parametrize(
    "recipe, version",
    [("int4-k-all", 2), ("int3-k", 2), ("int2-k-dynamic", 2), (OFFSETS, 2), ("int4", 1)],
    ids=str,
)
def test_logits_and_stored_tensors_survive_and_the_version_is_the_least(tmp_path, recipe, version):
    model = saved(tmp_path, recipe)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["format_version"] == version
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_folders_of_later_versions_say_which_they_need():
    with pytest.raises(InputError, match="needs format version 3; this lowbit reads 1 and 2"):
        LowbitConfig("int4", format_version=3)


@pytest.mark.parametrize("name", ["scale", "offset"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_floats_that_are_not_finite_are_refused_by_name(tmp_path, name, value):
    saved(tmp_path, "int4-k")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    hurt = f"transformer.h.0.mlp.c_fc.{name}"
    tensors[hurt][3, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{hurt}.*"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_presets_keep_rows_of_no_super_groups_and_strict_recipes_refuse_them():
    model = small(128)
    result = lowbit.quantize(model, "int4-k", progress=False)
    reasons = {kept.name: kept.reason for kept in result.plan.kept}
    assert "a multiple of 256 inputs, not of 128" in reasons["transformer.h.0.attn.c_attn"]
    strict = Recipe.from_dict({"rules": [{"match": "*.c_attn", "scheme": "k-quant"}]})
    with pytest.raises(UsageError, match="not of 128"):
        lowbit.quantize(small(128), strict, progress=False)


def test_padding_is_told():
    model = small()
    lowbit.quantize(model, "int3-k", progress=False)
    text = str(explain(model))
    assert "groups of 16 inputs are padded to 32" in text or "reference" in text
