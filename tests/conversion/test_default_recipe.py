"""Which recipe a model gets whose user names none."""

import json

import pytest
import torch
from torch import nn

import lowbit
from lowbit.nn import QuantModule
from tests.models import make

GENERATING, READING = "int4-head8-dynamic", "int8-all-dynamic"


def schemes(model):
    """Of each quantized module: bits, and what its activations are."""
    return {
        name: (m.layout.bits, getattr(m, "activations", None))
        for name, m in model.named_modules()
        if isinstance(m, QuantModule)
    }


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("gpt2", GENERATING),
        ("llama-tied", GENERATING),
        ("bert", READING),
        ("bert-classifier", READING),
        ("distilbert", READING),
        ("bart", READING),
        ("t5", READING),
    ],
)
def test_the_default_follows_the_kind_of_the_model(kind, recipe):
    result = lowbit.quantize(make(kind), progress=False)
    assert result.recipe.name == recipe
    assert result.notes[0].startswith(f"Recipe {recipe} was chosen, ")


def test_the_body_of_a_language_model_reads_and_does_not_generate():
    assert lowbit.quantize(make("gpt2").transformer, progress=False).recipe.name == READING


def test_a_module_of_no_library_is_quantized_to_8_bits():
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    assert lowbit.quantize(model, progress=False).recipe.name == READING


def test_a_generator_has_layers_of_4_bits_and_a_table_and_a_head_of_8():
    model = make("gpt2")
    lowbit.quantize(model, progress=False)
    found = schemes(model)
    assert found["transformer.h.0.mlp.c_fc"] == (4, "dynamic")
    assert found["transformer.wte"][0] == 8 and found["lm_head"] == (8, "float")


def test_a_generator_whose_rows_have_no_groups_of_64_gets_8_bits_and_is_told_which():
    model = make("gpt2")
    config = type(model.config)(
        **{**model.config.to_dict(), "n_embd": 40, "n_head": 4, "n_inner": 128}
    )
    result = lowbit.quantize(type(model)(config).eval(), progress=False)
    assert result.recipe.name == READING
    assert "transformer.h.0.attn.c_attn" in result.notes[0] and "40" in result.notes[0]


def test_a_named_recipe_is_taken_without_a_word():
    assert lowbit.quantize(make("gpt2"), "int8", progress=False).notes == ()


def test_a_checkpoint_gets_the_same_default_and_the_same_bytes(tmp_path):
    model = make("gpt2")
    model.save_pretrained(tmp_path / "float")
    result = lowbit.quantize_checkpoint(str(tmp_path / "float"), None, tmp_path / "streamed")
    lowbit.quantize(model, progress=False)
    model.save_pretrained(tmp_path / "memory")
    assert result.recipe.name == GENERATING and result.notes[0].startswith("Recipe ")
    stored = [
        json.loads((tmp_path / f / "config.json").read_text())["quantization_config"]["modules"]
        for f in ("streamed", "memory")
    ]
    assert stored[0] == stored[1]
    loaded = type(model).from_pretrained(tmp_path / "streamed")
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
