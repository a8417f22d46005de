"""AWQ checkpoints come in code by code: the bytes are those of a NumPy packer, or of AutoRound."""

import json

import pytest
from safetensors.torch import load_file, save_file

import lowbit
from tests.interop import foreign
from tests.interop.stands_for import assert_holds


@pytest.mark.parametrize("size", [32, -1])
def test_codes_are_taken_over_exactly(size, tmp_path):
    weights = foreign.awq(tmp_path / "awq", size)
    lowbit.import_checkpoint(tmp_path / "awq", tmp_path / "out", progress=False)
    assert_holds(tmp_path / "out", weights)


def test_another_layout_is_refused(tmp_path):
    foreign.awq(tmp_path / "awq")
    file = tmp_path / "awq" / "config.json"
    stored = json.loads(file.read_text())
    stored["quantization_config"]["version"] = "gemv"
    file.write_text(json.dumps(stored))
    with pytest.raises(lowbit.InputError, match="layout gemv"):
        lowbit.import_checkpoint(tmp_path / "awq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scaled_activations_are_refused(tmp_path):
    foreign.awq(tmp_path / "awq")
    file = tmp_path / "awq" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.act_fn.scales"] = tensors["model.norm.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match="act_fn.scales scales activations"):
        lowbit.import_checkpoint(tmp_path / "awq", tmp_path / "out")
