"""Labels of words, by a model whose logits say what is wanted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from lowbit import InputError, UsageError
from lowbit.evaluation.bootstrap import loss
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks import make_task
from tests.models import make
from tests.small_tokenizers import words

VOCABULARY = ["anna", "bert", "oslo", "saw"]
LABELS = ["B-LOC", "B-PER", "I-PER", "O"]
SAYS = {"anna": "B-PER", "bert": "I-PER", "oslo": "B-LOC", "saw": "O"}


def model(says=SAYS, nan=False):
    """Says of each token what `says` has for it."""
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=0, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=16, num_labels=4,
        id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    made = BertForTokenClassification(config).eval()
    by_id = torch.zeros(8, 4)
    for number, word in enumerate(VOCABULARY, 4):
        by_id[number, LABELS.index(says[word])] = float("nan") if nan else 1.0
    made.forward = lambda input_ids, **_: SimpleNamespace(logits=by_id[input_ids])
    return made


def subject(side="right", **options):
    tokenizer = words(*VOCABULARY)
    tokenizer.padding_side = side
    return Subject("model", model(**options), tokenizer)


def task(folder, text, **options):
    (folder / "dev.txt").write_text(text)
    return make_task("token-classification", data=str(folder), **options)


TEXT = "anna B-PER\nbert I-PER\nsaw O\noslo B-LOC\n\nanna B-PER\nbert B-PER\n\nsaw O\n"


@pytest.mark.parametrize("side", ["left", "right"])
def test_f1_is_of_whole_entities(side, tmp_path):
    found = task(tmp_path, TEXT).measure(subject(side), progress=False)
    assert found.predictions == ("B-PER I-PER O B-LOC", "B-PER I-PER", "O")
    # Found: anna bert, oslo; anna bert. There are: anna bert, oslo; anna; bert.
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert found.main_metric == "f1" and (found.items, found.unit) == (3, "sentences")
    wanted = {"f1": 4 / 7, "precision": 2 / 3, "recall": 2 / 4, "accuracy": 6 / 7}
    assert values == pytest.approx(wanted)


def test_words_that_are_cut_are_outside_and_told(tmp_path):
    found = task(tmp_path, TEXT, max_length=4).measure(subject(), progress=False)
    assert found.predictions[0] == "B-PER I-PER O O"
    assert found.settings["words_without_token"] == 2


def test_without_entities_the_share_of_words_decides(tmp_path):
    kinds = {"anna": "B-LOC", "bert": "B-LOC", "oslo": "B-LOC", "saw": "O"}
    given = subject(says=kinds)
    given.model.config.id2label = {0: "NOUN", 1: "X", 2: "Y", 3: "VERB"}
    scored = task(tmp_path, "anna NOUN\nsaw VERB\n\noslo VERB\n")
    found = scored.measure(given, progress=False)
    assert list(found.metrics) == ["accuracy"] and found.metrics["accuracy"].value == 2 / 3
    assert scored.resampled(found)(np.array([0, 0, 1])) == pytest.approx(4 / 5)


def test_the_loss_beside_another_model_has_an_interval_over_sentences(tmp_path):
    scored = task(tmp_path, TEXT)
    before = scored.measure(subject(), progress=False)
    after = scored.measure(subject(says={**SAYS, "oslo": "O"}), progress=False)
    lost = loss(scored, before, after)
    assert lost.percent == pytest.approx(100 * (1 - (2 / 6) / (4 / 7)))
    assert lost.low <= lost.percent <= lost.high
    assert scored.resampled(before)(np.array([0])) == 1


def test_what_the_model_cannot_do_is_refused(tmp_path):
    told = "line 4: the model does not know the label 'B-ORG', only B-LOC, B-PER"
    with pytest.raises(InputError, match=told):
        task(tmp_path, "oslo B-LOC\n\nsaw O\nanna B-ORG\n").measure(subject(), progress=False)
    with pytest.raises(UsageError, match="token-classification model"):
        task(tmp_path, TEXT).check(Subject("gpt2", make("gpt2"), words(*VOCABULARY)))
    with pytest.raises(InputError, match="not finite"):
        task(tmp_path, TEXT).measure(subject(nan=True), progress=False)
