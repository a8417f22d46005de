"""Folders of other quantizers: one sentence that says whose they are, from every verb."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit import InputError, quantize_checkpoint
from lowbit.checkpoint.foreign import DEQUANTIZED, LIBRARIES, TENSORS
from lowbit.checkpoint.load import load_model
from lowbit.inspect.checkpoint import inspect_checkpoint
from tests.folders import save

METHODS = [*LIBRARIES, "one of tomorrow"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save("gpt2", tmp_path_factory.mktemp("foreign") / "model")


def refused(folder, out, words, inspected=True, advice="quantize the float model"):
    tell = inspect_checkpoint if inspected else load_model
    for read in (load_model, tell, lambda f: quantize_checkpoint(f, "int8", out)):
        with pytest.raises(InputError, match="already quantized") as raised:
            read(folder)
        assert all(word in str(raised.value) for word in (words, advice))
        assert "\n" not in str(raised.value)


def with_config(source, folder, **keys):
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_config_of_another_method_is_named(method, source, tmp_path):
    config = {"quant_method": method, "bits": 4}
    folder = with_config(source, tmp_path / "model", quantization_config=config)
    if method in DEQUANTIZED:
        refused(folder, tmp_path / "out", method, advice="transformers loads it as a float model")
    else:
        refused(folder, tmp_path / "out", method)


def test_configs_without_a_method_are_known_too(source, tmp_path):
    config = {"load_in_4bit": True}
    folder = with_config(source, tmp_path / "bnb", quantization_config=config)
    refused(folder, tmp_path / "out", "bitsandbytes")
    folder = with_config(source, tmp_path / "mlx", quantization={"bits": 4, "group_size": 64})
    refused(folder, tmp_path / "out", "MLX")


@pytest.mark.parametrize("ending", TENSORS)
def test_tensors_tell_who_wrote_them_where_the_config_does_not(ending, source, tmp_path):
    folder = with_config(source, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors | {f"h.0.attn.c_attn{ending}": torch.zeros(2)}, folder / "model.safetensors")
    refused(folder, tmp_path / "out", TENSORS[ending], inspected=False)


def test_files_without_safetensors_are_named(source, tmp_path):
    folder = with_config(source, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    for read in (load_model, lambda f: quantize_checkpoint(f, "int8", tmp_path / "out")):
        with pytest.raises(InputError, match=r"model-Q4_K_M.gguf is a file of llama.cpp \(GGUF\)"):
            read(folder)
    with pytest.raises(InputError, match=r"is a file of llama.cpp \(GGUF\); a model is a folder"):
        load_model(folder / "model-Q4_K_M.gguf")
