"""Experts that other programs quantized one by one come in as one weight, code for code."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

import lowbit
from lowbit.checkpoint.load import load_model
from tests.interop import foreign

EXPERTS = 11  # of two digits: "10" comes after "9"
SIZES = dict(
    vocab_size=200,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts_per_tok=2,
)


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=EXPERTS))


def qwen2():
    torch.manual_seed(0)
    own = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **own, num_experts=EXPERTS))


# What each expert's matrices are called, in the order in which the model has their rows.
MIXTRAL = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
QWEN2 = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
PLACES = {
    "mixtral": "model.layers.0.block_sparse_moe.experts",
    "qwen2": "model.layers.0.mlp.experts",
}


def assert_experts(folder, weights, place, kinds):
    """Each parameter decodes to the matrices of all experts, bit for bit; the model runs."""
    model = load_model(folder)
    experts = model.get_submodule("model.layers.0.mlp.experts")
    for parameter, parts in kinds.items():
        found = lowbit.dequantize(experts.get_submodule(parameter).stored_weight).numpy()
        expected = [weights[f"{place}.{e}.{part}"] for e in range(EXPERTS) for part in parts]
        np.testing.assert_array_equal(found, np.concatenate(expected), parameter)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(1, 13)[None]).logits).all()


@pytest.mark.parametrize("write", [foreign.gptq, foreign.awq], ids=["gptq", "awq"])
@pytest.mark.parametrize(
    ("model", "place", "kinds"),
    [
        (mixtral, "model.layers.0.block_sparse_moe.experts", MIXTRAL),
        (qwen2, "model.layers.0.mlp.experts", QWEN2),
    ],
    ids=["mixtral", "qwen2"],
)
def test_they_are_taken_over_exactly(write, model, place, kinds, tmp_path):
    weights = write(tmp_path / "theirs", model=model())
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "out", progress=False)
    assert_experts(tmp_path / "out", weights, place, kinds)


def one_of_another(tmp_path, **options):
    """A GPTQ folder of the Qwen2 in which one expert's gates are quantized with `options`."""
    weights = foreign.gptq(tmp_path / "theirs", model=qwen2())
    others = foreign.gptq(tmp_path / "others", model=qwen2(), **options)
    name = "model.layers.0.mlp.experts.3.gate_proj"
    file = tmp_path / "theirs" / "model.safetensors"
    tensors, there = load_file(file), load_file(tmp_path / "others" / "model.safetensors")
    tensors |= {key: tensor for key, tensor in there.items() if key.startswith(f"{name}.")}
    save_file(tensors, file, metadata={"format": "pt"})
    return weights | {name: others[name]}


def test_one_without_zero_points_is_said_with_them(tmp_path):
    weights = one_of_another(tmp_path, symmetric=True)
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "out", progress=False)
    assert_experts(tmp_path / "out", weights, "model.layers.0.mlp.experts", QWEN2)


def test_one_of_other_bits_is_refused_or_quantized_again(tmp_path):
    weights = one_of_another(tmp_path, bits=8)
    with pytest.raises(lowbit.InputError, match="experts of .* different ways.*--requantize"):
        lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    rules = {
        "rules": [{"match": "@experts", "scheme": "absmax", "bits": 8, "granularity": "channel"}]
    }
    result = lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "out", rules, progress=False)
    assert "22 weights (experts that are quantized in different ways)" in result.notes[1]
    experts = load_model(tmp_path / "out").get_submodule("model.layers.0.mlp.experts")
    found = lowbit.dequantize(experts.get_submodule("gate_up_proj").stored_weight).numpy()
    kinds = QWEN2["gate_up_proj"]
    expected = [
        weights[f"model.layers.0.mlp.experts.{e}.{p}"] for e in range(EXPERTS) for p in kinds
    ]
    expected = np.concatenate(expected)
    step = np.abs(expected).max(1, keepdims=True) / 127
    # They are decoded in float16.
    assert (np.abs(found - expected) <= step * 0.51 + 2e-3 * np.abs(expected)).all()


def test_matrices_of_one_scale_each_are_said_by_channel(tmp_path):
    """compressed-tensors, int-quantized by tensor."""

    def tensors_of(weight):
        scale = np.array([np.abs(weight).max() / 127.5], np.float32)
        q = np.clip(np.rint(weight / scale), -128, 127)
        codes = foreign.Codes(
            q, np.tile(scale, (len(q), 1)), np.zeros((len(q), 1)), np.zeros(q.shape[1], int)
        )
        return codes, {"weight": q.astype(np.int8), "weight_scale": scale}

    args = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor"}
    told = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": args}}}
    told |= {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"]}
    weights = foreign.write(tmp_path / "theirs", told, tensors_of, model=qwen2())
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "out", progress=False)
    assert_experts(tmp_path / "out", weights, "model.layers.0.mlp.experts", QWEN2)
