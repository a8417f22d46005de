"""Token classification: labels go to the first token of each word, and a model learns them."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from lowbit import InputError
from lowbit.evaluation.task import Subject
from lowbit.training.lesson import Material
from lowbit.training.settings import Settings
from lowbit.training.token_classification import collated, teach
from lowbit.training.train import train
from tests.models import BERT, make
from tests.small_tokenizers import words

NAMES, PLACES = ["anna", "bert"], ["oslo", "rome"]
VOCABULARY = [*NAMES, *PLACES, "in", "saw"]


def sentence(chance):
    known = [(chance.choice(NAMES), "B-PER"), ("saw", "O"), (chance.choice(NAMES), "B-PER")]
    place = [("in", "O"), (chance.choice(PLACES), "B-LOC")]
    return [*known, *place][chance.randrange(3) :]


@pytest.fixture
def data(tmp_path):
    for split, count in (("train", 96), ("dev", 16)):
        chance = random.Random(split)
        blocks = ("".join(f"{w} {x}\n" for w, x in sentence(chance)) for _ in range(count))
        (tmp_path / f"{split}.txt").write_text("\n".join(blocks))
    make("bert").save_pretrained(tmp_path / "bert")
    return tmp_path


def material(data):
    return Material(str(data / "bert"), words(*VOCABULARY), str(data), max_length=24)


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_stay_at_their_tokens_when_a_batch_is_padded(data, side):
    lesson = teach(material(data))
    names = lesson.model.config.id2label
    lesson.tokenizer.padding_side = side
    batch = collated(lesson.tokenizer)(lesson.examples[:8])
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
    said = {**dict.fromkeys(NAMES, "B-PER"), **dict.fromkeys(PLACES, "B-LOC")}
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        for token, label in zip(lesson.tokenizer.convert_ids_to_tokens(ids), labels, strict=True):
            wanted = said.get(token, "O") if token in VOCABULARY else None
            assert (None if label == -100 else names[int(label)]) == wanted


def test_a_model_that_names_the_labels_keeps_its_order_of_them(data):
    model = BertForTokenClassification(BertConfig(**BERT, num_labels=3))
    model.config.id2label = {0: "O", 1: "B-PER", 2: "B-LOC"}
    model.save_pretrained(data / "bert")
    lesson = teach(material(data))
    assert lesson.model.config.label2id == {"O": 0, "B-PER": 1, "B-LOC": 2}
    saw = lesson.tokenizer.convert_tokens_to_ids("saw")
    pairs = [p for e in lesson.examples for p in zip(e["input_ids"], e["labels"], strict=True)]
    assert {label for token, label in pairs if token == saw} == {0}
    lesson.score.check(Subject("model", lesson.model, lesson.tokenizer))


def test_words_that_are_cut_are_said_and_sentences_of_such_alone_are_not_learned(data):
    lesson = teach(replace(material(data), max_length=4))
    assert "words of" in lesson.notes[0] and "are not learned" in lesson.notes[0]
    nothing = replace(material(data), max_length=2)
    with pytest.raises(InputError, match="no example to train on"):
        train("token-classification", nothing, data / "out", Settings(), progress=False)


def test_one_label_is_nothing_to_learn(data):
    (data / "train.txt").write_text("anna O\n\nsaw O\n")
    with pytest.raises(InputError, match="one label, O"):
        teach(material(data))


@pytest.mark.slow
def test_a_model_learns_entities_and_its_integers_find_them(data):
    settings = Settings(qat="int8", learning_rate=2e-3, epochs=6, batch_size=16)
    taught = material(data)
    outcome = train("token-classification", taught, data / "out", settings, progress=False)
    for found in outcome.measurements.values():
        assert found.metrics["f1"].value >= 0.9, found.predictions
    assert outcome.measurements["integer"].metrics["agreement"].value >= 0.9


@pytest.mark.slow
def test_tagged_words_are_distilled_over_their_tokens(data):
    settings = Settings(learning_rate=2e-3, epochs=6, batch_size=16)
    train("token-classification", material(data), data / "out", settings, progress=False)
    torch.manual_seed(0)
    further = Material(
        str(data / "out" / "float"), words(*VOCABULARY), str(data), max_length=24, dropout=0.0
    )
    towards = Settings(qat="int4", distill=1.0, learning_rate=1e-4, epochs=1)
    outcome = train("token-classification", further, data / "more", towards, progress=False)
    assert outcome.measurements["integer"].metrics["f1"].value >= 0.9
