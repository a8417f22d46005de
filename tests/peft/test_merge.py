"""A merged adapter is in the weight as the recipe's scheme rounds it, and nothing else changes."""

import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="the package peft is absent")

from peft import PeftModel, get_peft_model

import lowbit
from lowbit.nn import QuantLinear, QuantModule
from tests.models import make
from tests.peft.adapted import IDS, adapted, config, near, quantized, randomized, with_twin


def stored(model):
    return {
        name.replace(".base_layer", "").removeprefix("base_model.model."): {
            k: t.clone() for k, t in m.stored_weight.tensors().items()
        }
        for name, m in model.named_modules()
        if isinstance(m, QuantModule)
    }


def absmax(weight):
    """What int8 stores of a row: NumPy's own, with scales as float16 has them."""
    scale = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
    return np.clip(np.rint(weight / scale), -127, 127) * scale


@pytest.mark.parametrize(("name", "layer"), [("gpt2", "c_attn"), ("bert", "query")])
def test_a_merged_weight_is_the_sum_rounded_as_numpy_rounds_it(name, layer):
    model = adapted(name, "int8", target_modules=[layer])
    sums = {}
    for place, module in model.base_model.model.named_modules():
        if place.endswith(f".{layer}"):
            A, B = module.lora_A.default.weight, module.lora_B.default.weight
            base = lowbit.dequantize(module.base_layer.stored_weight).double()
            sums[place] = (base + 2 * B.double() @ A.double()).detach().numpy()
    merged = model.merge_and_unload()
    assert len(sums) == 2
    for place, wanted in sums.items():
        module = merged.get_submodule(place)
        assert isinstance(module, QuantLinear)
        found = lowbit.dequantize(module.stored_weight).double().numpy()
        step = np.abs(wanted).max(1, keepdims=True) / 127
        apart = np.abs(found - absmax(wanted))
        # Where a sum in float32 lies on the edge of two codes it may take the other.
        assert (apart <= 1.01 * step).all() and (apart > 0.01 * step).mean() <= 1e-3


@pytest.mark.parametrize("recipe", ["int4", "bcq3", "int8-dynamic", "int4-k"])
def test_all_other_weights_stay_bit_for_bit_and_the_error_is_told(recipe):
    model = adapted("gpt2", recipe, target_modules=["mlp.c_proj"])
    before, errors = stored(model), dict(model.config.quantization_config.errors)
    merged = model.merge_and_unload()
    after = stored(merged)
    assert before.keys() == after.keys()
    for name, tensors in after.items():
        same = all(torch.equal(t, before[name][k]) for k, t in tensors.items())
        assert same == (not name.endswith("mlp.c_proj"))
        assert (merged.config.quantization_config.errors[name] == errors[name]) == same


def test_a_merged_model_computes_what_the_adapted_one_does_but_for_the_rounding(tmp_path):
    model, twin = with_twin("gpt2", "int8", lora_bias=True)
    wanted = model(input_ids=IDS)[0]
    assert near(twin.merge_and_unload()(input_ids=IDS)[0], wanted)
    merged = model.merge_and_unload()
    assert near(merged(input_ids=IDS)[0], wanted, 0.03)
    assert merged.transformer.h[0].mlp.c_fc.nonlinearity_now() == "gelu_tanh"  # fused again
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=IDS)[0], merged(input_ids=IDS)[0])
    lowbit.verify(tmp_path)


@pytest.mark.parametrize(
    ("name", "recipe"), [("gpt2", "int8-all"), ("llama-tied", "int4-head8-dynamic")]
)
def test_a_head_stays_tied_through_merging_saving_and_dequantizing(name, recipe, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no longer tied")
        merged = adapted(name, recipe).merge_and_unload()
    assert merged.config.tie_word_embeddings
    merged.save_pretrained(tmp_path / "merged")
    lowbit.dequantize_checkpoint(tmp_path / "merged", tmp_path / "on-disk", progress=False)
    wanted = merged.dequantize()(input_ids=IDS)[0]
    merged.save_pretrained(tmp_path / "in-memory")
    for folder in ("on-disk", "in-memory"):
        again = type(merged).from_pretrained(tmp_path / folder)
        assert torch.equal(again(input_ids=IDS)[0], wanted)


def test_dora_is_merged_as_the_float_twin_merges_it():
    model, twin = with_twin("gpt2", "int8", use_dora=True)
    wanted = twin.merge_and_unload()(input_ids=IDS)[0]
    assert near(model.merge_and_unload()(input_ids=IDS)[0], wanted, 0.03)


def test_unloading_leaves_the_base_as_it_was():
    model = adapted("gpt2", "int4-dynamic")
    assert torch.equal(
        model.unload()(input_ids=IDS)[0], quantized("gpt2", "int4-dynamic")(input_ids=IDS)[0]
    )


def test_what_could_not_be_undone_is_refused():
    model = adapted("gpt2")
    y = model(input_ids=IDS)[0]
    with pytest.raises(lowbit.UsageError, match="use merge_and_unload"):
        model.merge_adapter()
    assert torch.equal(model(input_ids=IDS)[0], y)


def nan(model):
    model.base_model.model.transformer.h[1].mlp.c_proj.lora_B.default.weight.data[0, 0] = torch.nan


def elsewhere(model):
    model.config.quantization_config.recipe = lowbit.PRESETS["int8"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (nan, "transformer.h.1.mlp.c_proj: adapter default holds numbers that are not finite"),
        (
            elsewhere,
            "is stored as affine 4-bit group:64, but recipe int8 does not store the sum so",
        ),
    ],
)
def test_a_merge_that_fails_changes_nothing(spoil, sentence):
    model = adapted("gpt2")
    spoil(model)
    before = stored(model)
    with pytest.raises(lowbit.LowbitError, match=sentence):
        model.merge_and_unload()
    after = stored(model)
    assert all(torch.equal(t, before[n][k]) for n, held in after.items() for k, t in held.items())
    assert isinstance(model, PeftModel) and hasattr(
        model.base_model.model.transformer.h[0].attn.c_attn, "base_layer"
    )


@pytest.mark.filterwarnings("ignore:.*tie.*")
def test_a_weight_that_others_share_is_not_merged_into():
    model = adapted("gpt2", "int8-all", target_modules=["lm_head"])
    with pytest.raises(lowbit.UsageError, match="lm_head: its weight is stored once for several"):
        model.merge_and_unload()


def test_layers_that_are_kept_float_are_merged_by_peft():
    recipe = lowbit.Recipe(
        (lowbit.Rule("*.mlp.*", lowbit.Absmax(8)), lowbit.Rule("@linear", lowbit.KEEP))
    )
    model = make("gpt2")
    lowbit.quantize(model, recipe, progress=False)
    model = randomized(get_peft_model(model, config(fan_in_fan_out=True)))
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    wanted = layer.base_layer.weight + layer.get_delta_weight("default")
    merged = model.merge_and_unload()
    assert near(merged.transformer.h[0].attn.c_attn.weight, wanted, 1e-6)
    assert isinstance(merged.transformer.h[0].mlp.c_fc, QuantLinear)
