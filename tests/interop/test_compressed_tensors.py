"""compressed-tensors in and out, beside the library itself: its compressor makes what comes in,
and transformers loads with it what goes out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import lowbit
from lowbit.checkpoint.load import load_model
from tests.folders import byte_tokenizer, save
from tests.interop.stands_for import assert_holds
from tests.models import make

pytest.importorskip(
    "compressed_tensors", reason="compressed-tensors is not installed: pip install .[interop]"
)

pytestmark = pytest.mark.slow
TOKENS = torch.arange(1, 25).reshape(2, 12)


def compressed(folder, format, bits, strategy, size=None, symmetric=True, int8=False, dtype=None):
    """A folder that the library's own compressor made of the tiny Llama, and what each weight
    stands for as its own decompressor says, in float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=size
    )
    dynamic = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=dynamic if int8 else None
    )
    compressor = BaseCompressor.get_value_from_registry(format)
    model = make("llama-untied").to(dtype or torch.float32)
    stored, weights = {}, {}
    for key, tensor in model.state_dict().items():
        if "_proj" not in key:
            stored[key] = tensor
            continue
        if strategy == "tensor":
            low, high = tensor.min().reshape(1), tensor.max().reshape(1)
        else:
            apart = tensor.unflatten(1, (-1, size or tensor.shape[1]))
            low, high = apart.amin(2), apart.amax(2)
        scale, zero = calculate_qparams(low, high, args)
        zero = zero.round().to(torch.int8)
        state = {"weight": tensor, "weight_scale": scale, "weight_zero_point": zero}
        made = compressor.compress(state, scheme)
        exact = made | {"weight_scale": made["weight_scale"].float()}
        module = key.removesuffix(".weight")
        weights[module] = compressor.decompress(exact, scheme)["weight"].float().numpy()
        stored |= {f"{module}.{own}": t for own, t in made.items()}
    folder.mkdir(parents=True)
    save_file({k: t.contiguous() for k, t in stored.items()}, folder / "model.safetensors")
    config = json.loads(model.config.to_json_string())
    config["architectures"] = ["LlamaForCausalLM"]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return weights


KINDS = {
    "4-bit-groups": ("pack-quantized", 4, "group", 32),
    "4-bit-groups-asymmetric": ("pack-quantized", 4, "group", 32, False),
    "4-bit-channel-asymmetric": ("pack-quantized", 4, "channel", None, False),
    "3-bit-groups-asymmetric": ("pack-quantized", 3, "group", 64, False),
    "8-bit-packed": ("pack-quantized", 8, "group", 64),
    "8-bit-channel": ("int-quantized", 8, "channel"),
    "8-bit-channel-asymmetric": ("int-quantized", 8, "channel", None, False),
    "8-bit-tensor": ("naive-quantized", 8, "tensor"),
    "4-bit-naive": ("naive-quantized", 4, "group", 64),
    "8-bit-dynamic": ("int-quantized", 8, "channel", None, True, True),
    "4-bit-bfloat16": ("pack-quantized", 4, "group", 32, False, False, torch.bfloat16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_library_compressed_is_taken_over_exactly(kind, tmp_path):
    weights = compressed(tmp_path / "theirs", *KINDS[kind])
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "ours", progress=False)
    model = assert_holds(tmp_path / "ours", weights)
    entries = model.config.quantization_config.modules.values()
    assert {e["activations"] for e in entries} == {"dynamic" if "dynamic" in kind else "float"}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("transform_config", {"config_groups": {"R1": {}}}, "has a transform_config"),
        ("format", "float-quantized", "in the form float-quantized"),
        ("config_groups", {"g": {"targets": ["Linear"]}}, "is not complete: 'weights'"),
        ("config_groups", 3, "no config_groups"),
    ],
)
def test_what_lowbit_does_not_hold_is_told(key, value, told, tmp_path):
    compressed(tmp_path / "theirs", *KINDS["4-bit-groups"])
    file = tmp_path / "theirs" / "config.json"
    stored = json.loads(file.read_text())
    stored["quantization_config"][key] = value
    if key == "format":
        stored["quantization_config"]["config_groups"]["group_0"].pop("format", None)
    file.write_text(json.dumps(stored))
    with pytest.raises(lowbit.InputError, match=told):
        lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def exported(tmp_path, recipe, name="llama-untied"):
    save(name, tmp_path / "float")
    lowbit.quantize_checkpoint(str(tmp_path / "float"), recipe, tmp_path / "ours", progress=False)
    return lowbit.export_checkpoint(tmp_path / "ours", "compressed-tensors", tmp_path / "theirs")


SYMMETRIC = {
    "rules": [
        {"match": "@head", "keep": True},
        {"match": "*.self_attn.*", "scheme": "absmax", "bits": 8, "granularity": "group:64"},
        {"match": "@linear", "scheme": "absmax", "bits": 4, "granularity": "group:32"},
    ]
}


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("int4", "llama-untied"),
        ("int8", "llama-untied"),
        (SYMMETRIC, "llama-untied"),
        ("int8-zeropoint", "llama-untied"),
        ("int4-head8", "llama-tied"),
        ("int4-all", "llama-untied"),
    ],
)
def test_transformers_loads_what_was_written_and_finds_our_logits(recipe, name, tmp_path):
    notes = exported(tmp_path, recipe, name).notes
    # This release of the library does not load zero points in any other way, nor those it wrote.
    shifted = any("CompressedTensorsConfig(dequantize=True)" in note for note in notes)
    assert shifted == (recipe not in ("int8", SYMMETRIC))
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if shifted else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", **how).eval()
    ours = load_model(tmp_path / "ours")
    with torch.no_grad():
        expected, found = ours(TOKENS).logits, theirs(TOKENS).logits
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_int8_activations_are_those_of_the_library_on_our_codes(tmp_path):
    """Its scales are amax / 127.5, ours amax / 127: so each is compared with its own rule."""
    exported(tmp_path, "int8-dynamic")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    ours = load_model(tmp_path / "ours").dequantize()

    def rounded(module, inputs):
        (x,) = inputs
        step = x.abs().amax(-1, keepdim=True) / 127.5
        return (torch.clamp(torch.round(x / step), -128, 127) * step,)

    for module_name, module in ours.named_modules():
        if module_name.endswith("_proj"):
            module.register_forward_pre_hook(rounded)
    with torch.no_grad():
        expected, found = ours(TOKENS).logits, theirs(TOKENS).logits
    assert float((found - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("recipe", ["int4", "int8-dynamic", "int8-zeropoint"])
def test_there_and_back_every_byte_is_the_same(recipe, tmp_path):
    exported(tmp_path, recipe)
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "back", progress=False)
    before = load_file(tmp_path / "ours" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key].float().numpy(), tensor.float().numpy(), key)
        assert after[key].dtype == tensor.dtype


@pytest.mark.parametrize(
    ("recipe", "name", "told"),
    [
        ("bcq3", "llama-untied", "quantize with int4"),
        ("int3", "llama-untied", "vLLM serves 4 or 8 bits, not 3; quantize with int4"),
        ("int4", "gpt2", "is a Conv1D"),
        (
            {"rules": [{"match": "@linear", "scheme": "absmax", "granularity": "group:80"}]},
            "llama-untied",
            "128 inputs are not a multiple of 80; quantize with int8",
        ),
    ],
)
def test_what_the_target_cannot_hold_is_told_before_any_work(recipe, name, told, tmp_path):
    with pytest.raises(lowbit.UsageError, match=told):
        exported(tmp_path, recipe, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float", "ours"]


def test_what_differs_there_is_told(tmp_path):
    notes = exported(tmp_path, "int4-head8-dynamic", "llama-tied").notes
    assert any("int8 activations here and float ones there" in note for note in notes)
    assert any("model.embed_tokens" in note for note in notes)


def test_an_unknown_target_is_told(tmp_path):
    save("llama-untied", tmp_path / "float")
    with pytest.raises(lowbit.UsageError, match="no format 'pickle' to export to"):
        lowbit.export_checkpoint(tmp_path / "float", "pickle", tmp_path / "out")
