"""The verb `dequantize`: the float checkpoint is the model that the quantized one stands for."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

import lowbit
from tests.folders import save
from tests.models import make, output

RECIPES = {
    "gpt2": "int4-all",
    "llama-tied": "bcq2-all-dynamic",
    "bart": "int8-all",
    "marian": "int8-all",  # its tables of positions are in no file
    "t5": "int3",
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_holds_what_the_model_dequantized_in_memory_holds(name, tmp_path):
    save(name, tmp_path / "float")
    lowbit.quantize_checkpoint(
        str(tmp_path / "float"), RECIPES[name], tmp_path / "q", progress=False
    )
    lowbit.dequantize_checkpoint(tmp_path / "q", tmp_path / "back", progress=False)
    kind = type(make(name))
    expected = kind.from_pretrained(tmp_path / "q").dequantize()
    found = kind.from_pretrained(tmp_path / "back")
    assert not hasattr(found.config, "quantization_config")
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], tensor, rtol=0, atol=0)
    assert (tmp_path / "back" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("name", "recipe"), [("gpt2", "int8-all"), ("llama-tied", "int4-head8-dynamic")]
)
def test_a_shared_head_is_written_if_the_config_denies_the_tie(name, recipe, tmp_path):
    # PEFT set the config so after a merge.
    model = make(name)
    lowbit.quantize(model, recipe, progress=False)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "q")
    wanted = output(copy.deepcopy(model).dequantize())
    lowbit.dequantize_checkpoint(tmp_path / "q", tmp_path / "on-disk", progress=False)
    type(model).from_pretrained(tmp_path / "q").dequantize().save_pretrained(tmp_path / "loaded")
    model.dequantize().save_pretrained(tmp_path / "in-memory")
    for folder in ("on-disk", "loaded", "in-memory"):
        found = type(model).from_pretrained(tmp_path / folder)
        assert torch.equal(output(found), wanted)


def test_a_float_folder_is_refused_and_nothing_is_written(tmp_path):
    save("gpt2", tmp_path / "float")
    with pytest.raises(lowbit.InputError, match="was not quantized with lowbit"):
        lowbit.dequantize_checkpoint(tmp_path / "float", tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float"]


def test_a_damaged_tensor_is_told_and_nothing_is_written(tmp_path):
    save("gpt2", tmp_path / "float")
    lowbit.quantize_checkpoint(str(tmp_path / "float"), "int4", tmp_path / "q", progress=False)
    file = tmp_path / "q" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith(".scale"))
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(lowbit.InputError, match="scale holds nan"):
        lowbit.dequantize_checkpoint(tmp_path / "q", tmp_path / "back", progress=False)
    assert not (tmp_path / "back").exists()
