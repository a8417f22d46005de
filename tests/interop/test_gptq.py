"""GPTQ checkpoints come in code by code: the bytes are those of a NumPy packer, or of AutoRound."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lowbit
from lowbit.checkpoint.load import load_model
from lowbit.formats import decode, group
from lowbit.formats.packing import pack
from lowbit.interop import affine_parameters
from tests.interop import foreign
from tests.interop.stands_for import assert_holds

KINDS = {
    "4-bit": dict(bits=4),
    "4-bit-v2": dict(bits=4, version=2),
    "4-bit-symmetric": dict(bits=4, symmetric=True),
    "4-bit-channel": dict(bits=4, size=-1),
    "2-bit": dict(bits=2),
    "3-bit": dict(bits=3),
    "3-bit-short-group": dict(bits=3, size=80),
    "8-bit": dict(bits=8),
    "8-bit-symmetric": dict(bits=8, symmetric=True, version=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_taken_over_exactly(kind, tmp_path):
    weights = foreign.gptq(tmp_path / "gptq", **KINDS[kind])
    result = lowbit.import_checkpoint(tmp_path / "gptq", tmp_path / "out", progress=False)
    assert len(result.plan.owners) == len(weights)
    model = assert_holds(tmp_path / "out", weights)
    stored = {e["zero_point"] for e in model.config.quantization_config.modules.values()}
    assert stored == {not KINDS[kind].get("symmetric", False)}


def test_the_card_says_where_the_codes_came_from(tmp_path):
    foreign.gptq(tmp_path / "gptq")
    result = lowbit.import_checkpoint(tmp_path / "gptq", tmp_path / "out", progress=False)
    said = (tmp_path / "out" / "README.md").read_text()
    assert "GPTQ checkpoint of 4 bits, written by numpy:1.0" in said
    assert result.notes[0] in said.replace("\\", "")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_an_old_folder_with_its_own_config_file_comes_in(tmp_path):
    weights = foreign.gptq(tmp_path / "gptq", beside="quantize_config.json")
    file = tmp_path / "gptq" / "model.safetensors"
    file.rename(file.with_name("gptq_model-4bit-32g.safetensors"))
    lowbit.import_checkpoint(tmp_path / "gptq", tmp_path / "out", progress=False)
    assert_holds(tmp_path / "out", weights)
    assert not (tmp_path / "out" / "quantize_config.json").exists()


def shuffled(columns):
    return np.random.default_rng(0).permutation(columns)


def test_inputs_in_another_order_are_refused_and_nothing_is_written(tmp_path):
    foreign.gptq(tmp_path / "gptq", order=shuffled)
    with pytest.raises(lowbit.InputError, match="desc_act.*--requantize RECIPE"):
        lowbit.import_checkpoint(tmp_path / "gptq", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["gptq"]


def test_they_are_quantized_again_by_a_recipe(tmp_path):
    weights = foreign.gptq(tmp_path / "gptq", order=shuffled)
    result = lowbit.import_checkpoint(
        tmp_path / "gptq", tmp_path / "out", requantize="int8", progress=False
    )
    assert "14 weights (quantized in another order of its inputs (desc_act))" in result.notes[0]
    model = load_model(tmp_path / "out")
    for name, weight in weights.items():
        found = lowbit.dequantize(model.get_submodule(name).stored_weight).numpy()
        step = np.abs(weight).max(1, keepdims=True) / 127
        assert (np.abs(found - weight) <= step * 0.51 + 2e-3 * np.abs(weight)).all()


def test_groups_that_are_whole_in_spite_of_desc_act_come_in(tmp_path):
    weights = foreign.gptq(tmp_path / "gptq", size=-1, order=shuffled)
    lowbit.import_checkpoint(tmp_path / "gptq", tmp_path / "out", progress=False)
    assert_holds(tmp_path / "out", weights)


def test_a_zero_point_that_programs_read_differently_is_refused(tmp_path):
    foreign.gptq(tmp_path / "gptq")
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("qzeros"))
    tensors[name][0, 0] = -1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match="holds 15.*gptq_v2"):
        lowbit.import_checkpoint(tmp_path / "gptq", tmp_path / "out")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_negative_and_zero_scales_are_said_exactly(bits):
    """AutoRound writes negative scales for symmetric weights."""
    rng = np.random.default_rng(bits)
    q = rng.integers(0, 1 << bits, (6, 80))
    scale = rng.normal(0, 0.1, (6, 3)).astype(np.float16)
    scale[2, 1] = 0
    for zero in (None, rng.integers(0, 1 << bits, (6, 3))):
        z = np.full((6, 3), 1 << (bits - 1)) if zero is None else zero
        groups = np.arange(80) // 32
        expected = scale.astype(np.float32)[:, groups] * (q - z[:, groups]).astype(np.float32)
        held = affine_parameters.AffineParameters.of(
            torch.from_numpy(scale),
            None if zero is None else torch.from_numpy(zero.astype(np.uint8)),
            bits,
            group(32),
        )
        codes = pack(torch.from_numpy(q.astype(np.uint8)), bits)
        found = held.hold(codes, 80)
        assert found.layout == held.layout
        np.testing.assert_array_equal(decode(found).numpy(), expected)
