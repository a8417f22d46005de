"""Checkpoint to checkpoint: the same as in memory, whole or not at all, in bounded memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianMTModel,
)

import lowbit
from lowbit import InputError, UsageError, quantize_checkpoint
from lowbit.checkpoint.load import load_model
from lowbit.conversion.config import LowbitConfig
from tests.combinations import some
from tests.models import MODELS, make, output


def save(model, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize(("name", "recipe"), some(MODELS, ["int8-dynamic", "int4-all", "bcq2"]))
def test_streaming_gives_what_quantizing_in_memory_gives(name, recipe, tmp_path):
    model = make(name)
    save(model, tmp_path / "float", max_shard_size="100KB")
    result = quantize_checkpoint(
        str(tmp_path / "float"), recipe, tmp_path / "out", max_shard_bytes=50_000, progress=False
    )
    in_memory = lowbit.quantize(model, recipe)
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert torch.equal(output(loaded), output(model))
    assert result.errors == in_memory.errors
    assert result.plan.to_dict() == in_memory.plan.to_dict()
    assert result.after.parameters == result.before.parameters
    assert result.after.stored_bytes == in_memory.after.stored_bytes
    assert result.before.stored_bytes == in_memory.before.stored_bytes
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1 and result.after.disk_bytes == sum(f.stat().st_size for f in files)
    assert not result.unused


def test_old_names_are_renamed_as_transformers_renames_them(tmp_path):
    """BERT checkpoints from before 2020 call LayerNorm's parameters gamma and beta."""
    model = make("bert-classifier")
    save(model, tmp_path / "float")
    file = tmp_path / "float" / "model.safetensors"
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in load_file(file).items()
    }
    assert any(n.endswith("gamma") for n in old)
    save_file(old, file, metadata={"format": "pt"})
    quantize_checkpoint(str(tmp_path / "float"), "int8", tmp_path / "out", progress=False)
    lowbit.quantize(model, "int8")
    assert torch.equal(output(type(model).from_pretrained(tmp_path / "out")), output(model))


@pytest.mark.parametrize("held", ["both", "target"])
def test_a_tied_weight_may_stand_under_either_name(held, tmp_path):
    model = make("gpt2")
    save(model, tmp_path / "float")
    file = tmp_path / "float" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    if held == "target":
        del tensors["transformer.wte.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    for recipe in ("int8", "int8-all"):
        out = tmp_path / recipe
        quantize_checkpoint(str(tmp_path / "float"), recipe, out, progress=False)
        expected = make("gpt2")
        lowbit.quantize(expected, recipe)
        assert torch.equal(output(type(model).from_pretrained(out)), output(expected))


def test_tied_weights_that_differ_are_refused(tmp_path):
    model = make("gpt2")
    save(model, tmp_path / "float")
    file = tmp_path / "float" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="two different weights"):
        quantize_checkpoint(str(tmp_path / "float"), "int8", tmp_path / "out", progress=False)


def test_tensors_that_the_model_has_no_place_for_are_named(tmp_path):
    model = make("bert")
    save(model, tmp_path / "float")
    file = tmp_path / "float" / "model.safetensors"
    save_file(load_file(file) | {"stranger": torch.ones(2)}, file, metadata={"format": "pt"})
    result = quantize_checkpoint(str(tmp_path / "float"), "int8", tmp_path / "out", progress=False)
    assert result.unused == ("stranger",)


def test_companions_travel_and_weights_in_other_forms_do_not(tmp_path):
    source = save(make("bert"), tmp_path / "float")
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "modeling_custom.py",
        ".git/config",
        "checkpoint-10/trainer_state.json",
        "checkpoint-10/model.safetensors",
        "int4/model.safetensors",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    (source / "int4" / "config.json").write_text('{"model_type": "bert"}')
    (source / "README.md").write_text("---\nlicense: mit\n---\n# BERT\n")
    quantize_checkpoint(str(source), "int4", tmp_path / "out", progress=False)
    travelled = {
        str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()
    }
    assert travelled == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "import lowbit" in card and "`int4`" in card
    assert str(tmp_path) not in card


def test_the_dtype_of_what_stays_float_is_kept(tmp_path):
    model = make("llama-untied").to(torch.bfloat16)
    save(model, tmp_path / "float")
    quantize_checkpoint(str(tmp_path / "float"), "int4", tmp_path / "out", progress=False)
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert loaded.model.embed_tokens.weight.dtype == loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_stale_index_beside_one_file_is_passed_over(tmp_path):
    """As transformers passes it over: the model was saved again, in one file."""
    source = save(make("bert"), tmp_path / "float")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    quantize_checkpoint(str(source), "int8", tmp_path / "out", progress=False)
    loaded, expected = load_model(tmp_path / "out"), make("bert")
    lowbit.quantize(expected, "int8")
    assert torch.equal(output(loaded), output(expected))


def test_generation_settings_in_config_json_are_kept(tmp_path):
    source = save(make("marian"), tmp_path / "float")
    (source / "generation_config.json").unlink()
    change(source, num_beams=6, bad_words_ids=[[7]], max_length=31)
    expected = MarianMTModel.from_pretrained(source).generation_config
    assert expected.num_beams == 6
    quantize_checkpoint(str(source), "int8", tmp_path / "out", progress=False)
    assert load_model(tmp_path / "out").generation_config == expected


@pytest.fixture
def source(tmp_path):
    return save(make("bert"), tmp_path / "float")


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def foreign(folder):
    save_file({"a": torch.zeros(3)}, folder / "model.safetensors")


def garbage(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def huge_header(folder):
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def no_tensors(folder):
    save_file({}, folder / "model.safetensors")


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_config(folder):
    (folder / "config.json").unlink()


def bad_config(folder):
    (folder / "config.json").write_text("{")


def list_config(folder):
    (folder / "config.json").write_text("[]")


def unknown_type(folder):
    (folder / "config.json").write_text('{"model_type": "nothing-known"}')


def remote_code(folder):
    (folder / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "x.X"}}')


def missing_tensor(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def wrong_shape(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.output.dense.weight"] = torch.zeros(3, 3)
    save_file(tensors, file, metadata={"format": "pt"})


def nan(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.1.output.dense.weight"][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def infinite_bias(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.1.output.LayerNorm.bias"][0] = -torch.inf
    save_file(tensors, file, metadata={"format": "pt"})


def missing_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def foreign_path(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def bad_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")


def change(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def quantized(folder):
    change(folder, quantization_config=LowbitConfig("int8").to_dict())


def redirected(folder):
    change(folder, transformers_weights="adapter_model.bin")


def quantization_in_a_word(folder):
    change(folder, quantization_config="x")


BROKEN = {
    truncate: "complete safetensors",
    empty: "is empty",
    foreign: "lacks",
    garbage: "complete safetensors",
    huge_header: "complete safetensors",
    no_tensors: "no tensors",
    pickle_only: "pickle",
    no_weights: "no weights",
    no_config: "no config.json",
    bad_config: "not a valid",
    list_config: "not a valid",
    unknown_type: "not a valid",
    remote_code: "remote code",
    missing_tensor: "encoder.layer.0.output.dense.weight",
    wrong_shape: r"\[3, 3\]",
    nan: "encoder.layer.1.output.dense.weight: 1 of",
    infinite_bias: "encoder.layer.1.output.LayerNorm.bias holds -inf",
    missing_shard: "lacks 1 of 1 shards",
    foreign_path: "not a file beside it",
    bad_index: "not a valid index",
    redirected: "adapter_model.bin",
    quantization_in_a_word: "not a mapping",
    quantized: "already quantized",
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_checkpoint_is_one_sentence_and_nothing_is_written(damage, source, tmp_path):
    damage(source)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=BROKEN[damage]) as raised:
        quantize_checkpoint(str(source), "int4", tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no-such/model-anywhere"])
def test_a_model_that_is_nowhere_is_one_sentence(name, tmp_path):
    with pytest.raises(InputError, match="there is no folder") as raised:
        quantize_checkpoint(name, "int4", tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value)


def test_an_output_that_is_not_empty_is_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("kept")
    with pytest.raises(UsageError, match="not empty"):
        quantize_checkpoint(str(source), "int4", out, progress=False)
    with pytest.raises(UsageError, match="not a model folder"):
        quantize_checkpoint(str(source), "int4", out, overwrite=True, progress=False)
    assert (out / "precious").read_text() == "kept"
    with pytest.raises(UsageError, match="is or holds the model"):
        quantize_checkpoint(str(source), "int4", source, overwrite=True, progress=False)
    with pytest.raises(UsageError, match="is or holds the model"):
        quantize_checkpoint(str(source), "int4", tmp_path, overwrite=True, progress=False)


def test_overwriting_replaces_a_model_and_keeps_it_on_failure(source, tmp_path):
    out = tmp_path / "out"
    quantize_checkpoint(str(source), "int4", out, progress=False)
    first = (out / "model.safetensors").read_bytes()
    nan(source)
    with pytest.raises(InputError):
        quantize_checkpoint(str(source), "int8", out, overwrite=True, progress=False)
    assert (out / "model.safetensors").read_bytes() == first
    save(make("bert"), source)
    quantize_checkpoint(str(source), "int8", out, overwrite=True, progress=False)
    assert (out / "model.safetensors").read_bytes() != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float", "out"]


def test_a_full_disk_is_one_sentence_and_nothing_is_left(source, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowbit.checkpoint.shards.save_file", full)
    with pytest.raises(InputError, match="cannot be written: .*No space left"):
        quantize_checkpoint(str(source), "int4", tmp_path / "out", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float"]


def wide_llama(folder: Path, layers: int) -> Path:
    """A random checkpoint of about 34 MB a layer, one shard each."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in LlamaForCausalLM(config).state_dict().items()}
    folder.mkdir()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    weight_map = {}
    for number, (name, shape) in enumerate(shapes.items()):
        file = f"model-{number + 1:05}-of-{len(shapes):05}.safetensors"
        save_file({name: torch.randn(shape) * 0.02}, folder / file, metadata={"format": "pt"})
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


RUN = """
import resource, sys, torch, lowbit
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lowbit.quantize_checkpoint(sys.argv[1], "int4", sys.argv[2], max_shard_bytes=20_000_000,
                           progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """Peak resident size as the operating system reports it, over that of the imports alone."""
    grown = {}
    for layers in (4, 16):
        folder = wide_llama(tmp_path / f"float{layers}", layers)
        size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        out = str(tmp_path / f"out{layers}")
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(folder), out],
            capture_output=True,
            text=True,
            check=True,
        )
        grown[layers] = int(done.stdout.split()[-1]) * 1024
        assert grown[layers] < 200e6, (grown, size)
    assert grown[16] - grown[4] < 50e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_an_interrupted_run_leaves_nothing(number, tmp_path):
    folder = wide_llama(tmp_path / "float", 8)
    out = tmp_path / "out"
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lowbit",
            "quantize",
            str(folder),
            "--recipe",
            "bcq4",
            "-o",
            str(out),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(number)
    stderr = run.communicate(timeout=60)[1]
    assert run.returncode in (130, 143)
    assert "Traceback" not in stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float"]


def with_dense(source: Path, weights: object, name: str = "pytorch_model.bin") -> Path:
    """A folder of sentence-transformers, whose Dense module is kept as older ones keep it."""
    save(make("bert"), source)
    (source / "2_Dense").mkdir()
    (source / "2_Dense" / "config.json").write_text('{"in_features": 4, "out_features": 2}')
    torch.save(weights, source / "2_Dense" / name)
    return source


def test_a_pickle_of_plain_tensors_in_a_subfolder_becomes_safetensors(tmp_path):
    weights = {"linear.weight": torch.randn(2, 4), "linear.bias": torch.randn(4, 2).T[:, 0]}
    source = with_dense(tmp_path / "float", weights)
    quantize_checkpoint(source, "int8", tmp_path / "out", progress=False)
    assert sorted(f.name for f in (tmp_path / "out" / "2_Dense").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    stored = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in weights)


@pytest.mark.parametrize("weights", [{"linear.weight": Path("a")}, {"epoch": 3}, [1]])
def test_another_pickle_in_a_subfolder_is_one_sentence_and_nothing_is_written(weights, tmp_path):
    source = with_dense(tmp_path / "float", weights)
    with pytest.raises(InputError, match="not a pickle of plain tensors") as raised:
        quantize_checkpoint(source, "int8", tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_pickle_that_is_too_large_is_one_sentence(tmp_path, monkeypatch):
    source = with_dense(tmp_path / "float", {"linear.weight": torch.zeros(64, 64)})
    # Not by its name: `lowbit.quantize` is the public function as well.
    monkeypatch.setattr(sys.modules["lowbit.checkpoint.companions"], "MAX_SHARD_BYTES", 1000)
    with pytest.raises(InputError, match="at most 1,000 are read"):
        quantize_checkpoint(source, "int8", tmp_path / "out", max_shard_bytes=10**9, progress=False)


def test_a_tensor_without_elements_is_read_and_written(tmp_path):
    """Some models have tables of no rows, such as register tokens."""
    config = DINOv3ViTConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=32,
        num_register_tokens=0,
    )
    model = DINOv3ViTModel(config).eval()
    assert 0 in [parameter.numel() for parameter in model.parameters()]
    save(model, tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", "int8", tmp_path / "out", progress=False)
    lowbit.quantize(model, "int8")
    pixels = torch.randn(1, 3, 32, 32)
    loaded = DINOv3ViTModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded(pixels)[0], model(pixels)[0])
