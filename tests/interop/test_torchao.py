"""torchao checkpoints come in, written with NumPy after its layout; its own are in
test_real_tools.py."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lowbit
from tests.interop.stands_for import assert_holds
from tests.models import make


def write(folder, bits, size, shifted=False, kind="IntxUnpackedToInt8Tensor", dynamic=False):
    """The tiny Llama as `save_pretrained` with torchao writes it, and its float32 weights."""
    rng = np.random.default_rng(bits)
    folder.mkdir()
    model = make("llama-untied")
    stored, metadata, weights = {}, {"format": "pt"}, {}
    for key, tensor in model.state_dict().items():
        if "_proj" not in key:
            stored[key], metadata[key] = tensor, '{"_type": "Tensor"}'
            continue
        module = key.removesuffix(".weight")
        rows, columns = tensor.shape
        width = size or columns
        shape = rows, columns // width
        half = 1 << (bits - 1)
        q = rng.integers(-half, half, (rows, columns)).astype(np.int8)
        scale = rng.uniform(0.01, 0.02, shape).astype(np.float32)
        zero = rng.integers(-half, half, shape).astype(np.int8) * shifted
        apart = np.arange(columns) // width
        centred = q.astype(np.float32) - zero.astype(np.float32)[:, apart]
        weights[module] = scale[:, apart] * centred
        own = {"qdata": q, "scale": scale, "zero_point": zero}
        stored |= {f"{module}._weight_{n}": torch.from_numpy(a) for n, a in own.items()}
        granularity = {"_type": "PerRow", "_data": {"dim": -1}}
        mapping = {"_type": "MappingType", "_data": "SYMMETRIC"}
        inputs = {"_data": {"granularity": granularity, "mapping_type": mapping}}
        data = {
            "block_size": [1, width],
            "target_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"},
            "act_quant_kwargs": inputs if dynamic else None,
        }
        metadata[key] = json.dumps({"_type": kind, "_data": data})
    save_file(stored, folder / "model.safetensors", metadata=metadata)
    config = json.loads(model.config.to_json_string()) | {"dtype": "float32"}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "quantization_config": {"quant_method": "torchao"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


@pytest.mark.parametrize(
    ("bits", "size", "shifted", "kind"),
    [
        (8, None, False, "Int8Tensor"),
        (8, None, True, "Int8Tensor"),
        (4, 32, False, "IntxUnpackedToInt8Tensor"),
        (3, 64, True, "IntxUnpackedToInt8Tensor"),
    ],
)
def test_codes_are_taken_over_exactly(bits, size, shifted, kind, tmp_path):
    weights = write(tmp_path / "theirs", bits, size, shifted, kind)
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "ours", progress=False)
    assert_holds(tmp_path / "ours", weights)


def test_symmetric_int8_activations_stay_dynamic(tmp_path):
    weights = write(tmp_path / "theirs", 8, None, kind="Int8Tensor", dynamic=True)
    lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "ours", progress=False)
    entries = assert_holds(tmp_path / "ours", weights).config.quantization_config.modules
    assert {entry["activations"] for entry in entries.values()} == {"dynamic"}


def test_another_class_of_tensor_is_named(tmp_path):
    write(tmp_path / "theirs", 4, 32, kind="Int4TilePackedTo4dTensor")
    with pytest.raises(lowbit.InputError, match="is a Int4TilePackedTo4dTensor, which lowbit"):
        lowbit.import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
