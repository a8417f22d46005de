"""A folder becomes a GGUF file and a folder again: the same codes, names and tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit import Recipe, Rule
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.errors import InputError, UsageError
from lowbit.formats import group
from lowbit.interop.export_checkpoint import export_checkpoint
from lowbit.interop.gguf import outgoing
from lowbit.interop.gguf.incoming import recognizes
from lowbit.interop.import_checkpoint import import_checkpoint
from lowbit.interop.stored_model import open_stored
from lowbit.kernels.ops import dequantize
from lowbit.quantization.streaming import quantize_checkpoint
from lowbit.schemes import Absmax, KQuant, ZeroPoint
from tests.interop.gguf.folders import TEXT, folder

gguf = pytest.importorskip("gguf", reason="the package gguf is absent")
Q4_0 = Recipe(
    (Rule("@embedding"), Rule("@head", Absmax(8)), Rule("@linear", Absmax(4, group(32)))),
    strict=False,
)


def quantized(name: str, to: Path, recipe: Recipe = Q4_0) -> Path:
    source = folder(name, to / "float")
    quantize_checkpoint(str(source), recipe, to / "quantized", progress=False)
    return to / "quantized"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return quantized("llama", tmp_path_factory.mktemp("llama"))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_a_model_comes_back_with_the_same_weights_and_tokens(llama, tmp_path):
    file = tmp_path / "llama.gguf"
    exported = export_checkpoint(llama, "gguf", file)
    assert exported.notes[0] == "Matrices by type: 14 Q4_0, 1 Q8_0, 1 F32."
    assert recognizes(file)
    import_checkpoint(file, tmp_path / "back", progress=False)
    first, second = load_tokenizer(llama), load_tokenizer(tmp_path / "back")
    ids = first(TEXT).input_ids
    assert second(TEXT).input_ids == ids
    with open_stored(llama) as before, open_stored(tmp_path / "back") as after:
        assert after.owners.keys() == before.owners.keys()
        for place, weight in before.owners.items():
            found = dequantize(after.owners[place].read(), torch.float32)
            assert torch.equal(found, dequantize(weight.read(), torch.float32)), place
    a, b = (logits(load_model(path), ids) for path in (llama, tmp_path / "back"))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gguf_reads_the_decoded_weights_of_a_file_in_its_own_order_of_rows(llama, tmp_path):
    file = tmp_path / "llama.gguf"
    export_checkpoint(llama, "gguf", file)
    with pytest.raises(UsageError, match="llama.gguf exists .--overwrite replaces it"):
        export_checkpoint(llama, "gguf", file)
    export_checkpoint(llama, "gguf", file, overwrite=True)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with open_stored(llama) as model:
        down = model.owners["model.layers.1.mlp.down_proj"].read()
        query = model.owners["model.layers.0.self_attn.q_proj"].read()
    stored = tensors["blk.1.ffn_down.weight"]
    found = gguf.dequantize(stored.data, stored.tensor_type)
    np.testing.assert_array_equal(found, dequantize(down, torch.float32).numpy())
    stored = tensors["blk.0.attn_q.weight"]
    found = gguf.dequantize(stored.data, stored.tensor_type)
    # 4 heads of 16 rows: row 2·i of a head is its row i here, 2·i + 1 its row 8 + i.
    rows = [head * 16 + half * 8 + i for head in range(4) for i in range(8) for half in range(2)]
    np.testing.assert_array_equal(found, dequantize(query, torch.float32).numpy()[rows])


def test_a_type_that_does_not_hold_the_codes_is_refused_before_anything_is_written(llama, tmp_path):
    with pytest.raises(UsageError, match=r"-bit.* is not what Q4_1 holds.*zero: float"):
        export_checkpoint(llama, "gguf:q4_1", tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="type 'iq4_xs' is unknown"):
        export_checkpoint(llama, "gguf:iq4_xs", tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_llama_cpp_computes_otherwise_is_refused(tmp_path):
    made = quantized("gpt2", tmp_path)
    config = made / "config.json"
    config.write_text(config.read_text().replace("gelu_new", "relu"))
    with pytest.raises(UsageError, match="activation_function = 'relu'"):
        export_checkpoint(made, "gguf", tmp_path / "x.gguf")


def test_zero_points_of_four_bits_go_into_five(tmp_path):
    recipe = Recipe((Rule("@head"), Rule("@linear", ZeroPoint(4, group(64)))), strict=False)
    made = quantized("gpt2", tmp_path, recipe)
    file = tmp_path / "gpt2.gguf"
    assert "8 Q5_0" in export_checkpoint(made, "gguf", file).notes[0]
    with open_stored(made) as model:
        own = model.owners["transformer.h.0.attn.c_attn"].read()
    stored = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.attn_qkv.weight")
    found = gguf.dequantize(stored.data, stored.tensor_type)
    np.testing.assert_array_equal(found, dequantize(own, torch.float32).numpy())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("split.count", "two", "split.count = 'two', which is not a count"),
        ("split.count", 3, "is one of 3 parts"),
        ("llama.block_count", "many", "block_count = 'many', which is not a count"),
    ],
)
def test_metadata_of_another_type_are_told(key, value, told, llama, tmp_path, monkeypatch):
    write = outgoing.write_file
    monkeypatch.setattr(
        outgoing, "write_file", lambda f, m, *rest: write(f, m | {key: value}, *rest)
    )
    export_checkpoint(llama, "gguf", tmp_path / "llama.gguf")
    with pytest.raises(InputError, match=told):
        import_checkpoint(tmp_path / "llama.gguf", tmp_path / "back", progress=False)


def test_tables_that_llama_cpp_adds_as_they_lie_are_floats_there(tmp_path):
    """It ends the process that opens others."""
    every = Absmax(8, group(32))
    recipe = Recipe((Rule("@embedding", every), Rule("@linear", every)), strict=False)
    bert = quantized("bert", tmp_path, recipe)
    export_checkpoint(bert, "gguf:q8_0", tmp_path / "bert.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "bert.gguf").tensors}
    with open_stored(bert) as model:
        types = model.owners["embeddings.token_type_embeddings"].read()
    assert tensors["position_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["token_types.weight"].tensor_type.name == "F32"
    found = tensors["token_types.weight"].data
    np.testing.assert_array_equal(found, dequantize(types, torch.float32).numpy())


def test_a_float_file_has_no_tensors_that_the_model_lacks(tmp_path):
    source = folder("bert", tmp_path / "float")
    file = source / "model.safetensors"
    tensors = load_file(file) | {"embeddings.position_ids": torch.arange(8)[None]}
    save_file(tensors, file, metadata={"format": "pt"})
    export_checkpoint(source, "gguf", tmp_path / "bert.gguf")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "bert.gguf").tensors}
    assert "position_embd.weight" in names and len(names) == len(tensors) - 3  # and the pooler


def test_a_float_model_has_no_types_and_replaces_no_file(tmp_path):
    source, file = folder("gpt2", tmp_path / "float"), tmp_path / "gpt2.gguf"
    with pytest.raises(UsageError, match="is a float model: quantize it, or leave out the type q4"):
        export_checkpoint(source, "gguf:q4_0", file)
    with pytest.raises(InputError, match="was not quantized with lowbit"):
        export_checkpoint(source, "compressed-tensors", tmp_path / "out")
    assert [*tmp_path.iterdir()] == [source]
    file.write_bytes(b"mine")
    with pytest.raises(UsageError, match="gpt2.gguf exists"):
        export_checkpoint(source, "gguf", file)
    assert file.read_bytes() == b"mine"
    exported = export_checkpoint(source, "gguf", file, overwrite=True)
    assert exported.weights == 0 and exported.bytes == file.stat().st_size
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds == {"F32"}


@pytest.mark.parametrize("to", ["gguf", "compressed-tensors"])
@pytest.mark.parametrize("shown", [True, False])
def test_an_export_shows_how_far_it_is(to, shown, llama, tmp_path, monkeypatch):
    bars = []

    def bar(items, what, disable, **_):
        bars.append((what, disable))
        return items

    monkeypatch.setattr("lowbit.progress.tqdm", bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    export_checkpoint(llama, to, tmp_path / "out", progress=shown)
    assert bars == [("exporting", not shown)]


def test_a_recipe_names_the_scheme_of_k_quants(tmp_path):
    recipe = Recipe((Rule("@embedding"), Rule("@head"), Rule("@linear", KQuant(3))), strict=False)
    folder = quantized("gpt2", tmp_path, recipe)
    export_checkpoint(folder, "gguf:q3_k", tmp_path / "gpt2.gguf")
    plan = import_checkpoint(tmp_path / "gpt2.gguf", tmp_path / "back", progress=False).plan
    assert {decision.scheme for decision in plan.quantized} == {KQuant(3)}


def test_types_without_even_steps_are_refused_by_name_or_quantized_again(tmp_path):
    file = tmp_path / "float.gguf"
    export_checkpoint(folder("gpt2", tmp_path / "float"), "gguf", file)
    stored = bytearray(file.read_bytes())
    reader = gguf.GGUFReader(file)
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    iq4 = gguf.GGMLQuantizationType.IQ4_NL
    # As many weights in fewer bytes: no other tensor moves.
    name = tensor.name.encode()
    at = stored.index(name) + len(name) + 4 + 16
    stored[at : at + 4] = int(iq4).to_bytes(4, "little")
    size = 256 * 64 // 32 * 18
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (size // 18, 18), dtype=np.uint8)
    blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)
    stored[tensor.data_offset : tensor.data_offset + size] = blocks.tobytes()
    file.write_bytes(stored)
    with pytest.raises(InputError, match=r"blk.1.ffn_up.weight: its type IQ4_NL .*requantize"):
        import_checkpoint(file, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    result = import_checkpoint(file, tmp_path / "out", "int8", progress=False)
    assert any("IQ4_NL" in note for note in result.notes)
    expected = gguf.dequantize(blocks.reshape(256, -1), iq4)
    with open_stored(tmp_path / "out") as model:
        own = model.owners["transformer.h.1.mlp.c_fc"].read()
    np.testing.assert_allclose(dequantize(own, torch.float32).numpy(), expected, atol=0.02)


def pooled(source: Path, stored: dict, *more: str) -> Path:
    """As sentence-transformers describes it: a folder whose vectors are pooled so."""
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps(stored))
    kinds = {"Transformer": "", "Pooling": "1_Pooling", **{kind: f"2_{kind}" for kind in more}}
    modules = [{"type": f"st.models.{kind}", "path": path} for kind, path in kinds.items()]
    (source / "modules.json").write_text(json.dumps(modules))
    return source


@pytest.mark.parametrize(
    ("stored", "number"),
    [
        ({"pooling_mode": "mean"}, 1),
        ({"pooling_mode": ["cls"]}, 2),
        ({"pooling_mode": "lasttoken"}, 3),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
        ({"pooling_mode_lasttoken": True}, 3),
        (None, 0),
    ],
)
def test_the_pooling_is_written_as_llama_cpp_counts(stored, number, tmp_path):
    source = folder("bert", tmp_path / "float")
    if stored is not None:
        pooled(source, stored, "Normalize")
    export_checkpoint(source, "gguf", tmp_path / "bert.gguf")
    field = gguf.GGUFReader(tmp_path / "bert.gguf").get_field("bert.pooling_type")
    assert field.contents() == number


@pytest.mark.parametrize(
    ("stored", "more", "told"),
    [
        ({"pooling_mode": "max"}, (), "pooling 'max' is unknown: use mean, cls, lasttoken"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, (), "pooling 'mean_sqrt_len_tokens' is"),
        ({"pooling_mode": ["mean", "cls"]}, (), "those of mean and cls; llama.cpp takes one"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            (),
            "those of max and mean; llama.cpp takes one",
        ),
        ({"pooling_mode": "mean"}, ("Dense",), "module 'Dense' is unknown"),
    ],
)
def test_a_pooling_that_llama_cpp_lacks_is_refused(stored, more, told, tmp_path):
    source = pooled(folder("bert", tmp_path / "float"), stored, *more)
    with pytest.raises(InputError, match=told):
        export_checkpoint(source, "gguf", tmp_path / "bert.gguf")
    quantize_checkpoint(str(source), Q4_0, tmp_path / "quantized", progress=False)
    with pytest.raises(UsageError, match=f"cannot be exported to GGUF: .*{told}"):
        export_checkpoint(tmp_path / "quantized", "gguf", tmp_path / "bert.gguf")
    assert not (tmp_path / "bert.gguf").exists()
