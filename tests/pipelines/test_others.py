"""Labels, translations and continuations, against transformers alone."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

import lowbit
from lowbit.checkpoint.load import load_model, load_tokenizer
from lowbit.errors import UsageError
from lowbit.kernels import native
from lowbit.pipelines.classification import Classifier
from lowbit.pipelines.opened import open_pipeline
from lowbit.runtime.programs import Compiled, Programs
from tests.folders import byte_tokenizer, save
from tests.models import BERT, make

ROWS = [("who came",), ("a",), ("then and of",)]


@pytest.mark.parametrize(
    ("problem", "labels", "scores"),
    [
        (None, 3, lambda x: x.softmax(-1)),
        (None, 1, torch.sigmoid),
        ("regression", 1, lambda x: x),
        ("multi_label_classification", 2, torch.sigmoid),
    ],
)
def test_scores_are_what_the_config_says(problem, labels, scores):
    model, tokenizer = make("bert-classifier"), byte_tokenizer()
    model.classifier = torch.nn.Linear(128, labels)
    model.config.num_labels, model.config.problem_type = labels, problem
    got = np.stack(Classifier(model, tokenizer)(ROWS, 16))
    for row, each in zip(ROWS, got, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(row[0], return_tensors="pt")).logits[0]
        np.testing.assert_allclose(each, scores(logits).numpy(), rtol=1e-4, atol=1e-6)


def test_pairs_are_read_together(tmp_path):
    save("bert-classifier", tmp_path)
    classifier = open_pipeline(tmp_path)
    (got,) = classifier([("ab", "cd")], 100)
    inputs = classifier.tokenizer("ab", "cd", return_tensors="pt")
    with torch.no_grad():
        expected = classifier.model(**inputs).logits.softmax(-1)[0]
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4)


def test_translations_do_not_depend_on_the_batch(tmp_path):
    save("bart", tmp_path)
    pipeline = open_pipeline(tmp_path, max_new_tokens=6, beams=2)
    rows = [*ROWS, (" ",)]
    assert pipeline.kind == "translation"
    got = pipeline(rows, 1000)
    assert got == pipeline(rows, 1) and got[3] is None
    model, tokenizer = load_model(tmp_path), load_tokenizer(tmp_path)
    inputs = tokenizer([ROWS[0][0]], return_tensors="pt")
    names = ("input_ids", "attention_mask")
    ids = model.generate(
        **{name: inputs[name] for name in names}, num_beams=2, max_new_tokens=6, max_length=None
    )
    assert got[0] == tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.skipif(not native.available(), reason=native.reason())
@pytest.mark.parametrize("name", ["marian", "bart"])
def test_a_quantized_encoder_of_a_translator_is_a_program(name, tmp_path):
    save(name, tmp_path / "float")
    model, tokenizer = load_model(tmp_path / "float"), load_tokenizer(tmp_path / "float")
    float_encoder = open_pipeline(tmp_path / "float").translator.model.get_encoder()
    assert Programs.held_by(float_encoder) is None and "forward" not in float_encoder.__dict__
    lowbit.quantize(model, "int8-dynamic", progress=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipeline = open_pipeline(tmp_path, max_new_tokens=6)
    got = pipeline(ROWS, 1000)
    made = Programs.of(pipeline.translator.model.get_encoder()).made.values()
    assert made and all(isinstance(each, Compiled) for each in made)
    for (text,), translation in zip(ROWS, got, strict=True):
        ids = model.generate(tokenizer(text, return_tensors="pt").input_ids, max_new_tokens=6)
        assert translation == tokenizer.decode(ids[0], skip_special_tokens=True)


def test_continuations_are_those_of_generate(tmp_path):
    save("gpt2", tmp_path)
    pipeline = open_pipeline(tmp_path, max_new_tokens=5)
    assert pipeline.kind == "generation"
    got = pipeline(ROWS, 1000)
    for (text,), continuation in zip(ROWS, got, strict=True):
        inputs = pipeline.tokenizer(text, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        with torch.no_grad():
            ids = pipeline.model.generate(
                **{name: inputs[name] for name in names},
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=0,
            )
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert continuation == pipeline.tokenizer.decode(new, skip_special_tokens=True)
    (item,) = pipeline.encode([("ab" * 50,)])
    assert item.cut and item.length == 64 - 5


def test_what_a_model_cannot_do_is_refused(tmp_path):
    save("gpt2", tmp_path)
    with pytest.raises(UsageError, match="GPT2LMHeadModel does not classify"):
        open_pipeline(tmp_path, "classification")
    with pytest.raises(UsageError, match="no chat template"):
        open_pipeline(tmp_path, chat=True)
    with pytest.raises(UsageError, match="max_new_tokens must be less than 64, "):
        open_pipeline(tmp_path, max_new_tokens=64)
    BertForTokenClassification(BertConfig(**BERT)).save_pretrained(tmp_path / "tagger")
    byte_tokenizer().save_pretrained(tmp_path / "tagger")
    assert open_pipeline(tmp_path / "tagger", "embedding").kind == "embedding"
    with pytest.raises(UsageError, match="GPT2LMHeadModel does not label words"):
        open_pipeline(tmp_path, "token-classification")


@pytest.mark.parametrize("recipe", [None, "int8-dynamic"])
def test_a_word_has_the_label_that_the_model_gives_its_first_token(tmp_path, recipe):
    torch.manual_seed(0)
    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
    model = BertForTokenClassification(BertConfig(**BERT, id2label=names)).eval()
    if recipe is not None:
        lowbit.quantize(model, recipe, progress=False)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    pipeline = open_pipeline(tmp_path)
    assert pipeline.kind == "token-classification"
    texts = ["ba  dodo\tb", "a", " ", "abba do ab ab"]
    got = pipeline([(text,) for text in texts], 24)
    for text, labels in zip(texts, got, strict=True):
        joined = " ".join(text.split())
        if not joined:
            assert labels is None
            continue
        with torch.no_grad():  # a token is a character
            (logits,) = model(input_ids=torch.tensor([byte_tokenizer()(joined).input_ids])).logits
        starts = [n for n in range(len(joined)) if n == 0 or joined[n - 1] == " "]
        assert labels == " ".join(names[int(logits[start].argmax())] for start in starts)
    (item,) = pipeline.encode([("ab " * 80,)])
    assert item.cut and item.length == 64
    assert pipeline([("ab " * 80,)], 100)[0].split()[-1] == "O"
