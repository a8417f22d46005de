"""Folders of other quantizers that lie: one sentence, and nothing is written."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.interop import compressed_tensors
from tests.interop import foreign


def refused(folder, told):
    """The sentence, which is of the input and not of its user."""
    with pytest.raises(lowbit.InputError, match=told) as found:
        lowbit.import_checkpoint(folder, folder.parent / "out", progress=False)
    assert "\n" not in str(found.value)
    assert not (folder.parent / "out").exists()


def compressed(folder, **said):
    """int8 weights by channel, of the form that is not packed."""

    class Stands:
        weight = None

    def tensors_of(weight):
        q = np.zeros(weight.shape, np.int8)
        return Stands, {"weight": q, "weight_scale": np.ones((len(q), 1), np.float16)}

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"} | said
    group = {"targets": weights.pop("targets", ["Linear"]), "weights": weights}
    told = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    foreign.write(folder, told | {"config_groups": {"group_0": group}}, tensors_of)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"targets": ["re:("]}, "is not a valid pattern: missing"),
        ({"targets": ["re:.*self_attn"]}, "has no entry of config_groups for .*mlp"),
        ({"targets": ["re:" + "a" * 201]}, "has a target of 201 characters"),
        ({"strategy": ["channel"]}, "cannot be loaded"),
        ({"strategy": "group", "group_size": 1}, "cannot be imported: group size 1 is outside"),
        ({"strategy": "group", "group_size": 1 << 40}, "cannot be imported: group size"),
    ],
)
def test_groups_of_compressed_tensors(said, told, tmp_path):
    compressed(tmp_path / "theirs", **said)
    refused(tmp_path / "theirs", told)


def test_patterns_with_choices_are_matched(tmp_path):
    targets = [r"re:.*self_attn\.(q|k|v|o)_proj$", r"re:.*\.mlp"]
    compressed(tmp_path / "theirs", targets=targets)
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "out", progress=False)


def test_patterns_that_take_too_long_are_refused(tmp_path, monkeypatch):
    # The pattern takes tenths of a second here, and longer for longer names.
    monkeypatch.setattr(compressed_tensors, "MOST_SECONDS", 0.001)
    compressed(tmp_path / "theirs", targets=[r"re:(\w|\w\w|\.|\w+)+(?=z|j)(?<=x)$"])
    refused(tmp_path / "theirs", "take more than 0.001 seconds to match, at 'model")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"quant_method": [], "packing_format": []}, "cannot be loaded"),
        ({"checkpoint_format": "gptq_v9"}, "has the GPTQ layout 'gptq_v9'"),
        ({"group_size": "128"}, "says group_size = '128', not a int"),
    ],
)
def test_options_of_gptq(said, told, tmp_path):
    foreign.gptq(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    stored = json.loads(file.read_text())
    stored["quantization_config"] |= said
    file.write_text(json.dumps(stored))
    refused(tmp_path / "theirs", told)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("write", [foreign.gptq, foreign.awq])
def test_scales_that_are_no_numbers(write, value, tmp_path):
    write(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("up_proj.scales"))
    tensors[name][0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    refused(tmp_path / "theirs", rf"up_proj.weight: its scale holds {value}")


def test_codes_of_bitsandbytes_in_the_order_of_a_gpu(tmp_path):
    class Stands:
        weight = None

    def tensors_of(weight):
        own = {"weight": np.zeros(weight.shape, np.int8), "SCB": np.ones(len(weight), np.float32)}
        return Stands, own | {"weight_format": np.array(2, np.uint8)}

    foreign.write(
        tmp_path / "theirs", {"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors_of
    )
    refused(tmp_path / "theirs", "in the order of one kind of GPU, not by rows")


def test_a_config_that_is_no_mapping(tmp_path):
    foreign.gptq(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps([json.loads(file.read_text())]))
    refused(tmp_path / "theirs", "has no format that lowbit imports|no mapping|not a mapping")
