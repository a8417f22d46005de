import math
import sys

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from lowbit import InputError, UsageError
from lowbit.data.glue_tasks import TASKS
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.glue import Glue
from tests.glue_files import FOLDERS
from tests.models import BERT, make
from tests.small_tokenizers import words

WORDS = ["c0", "c1", "c2", "x", "y", "z"]
C0 = 4
SIZES = dict(cola=2, sst2=2, mrpc=2, qqp=2, stsb=1, mnli=3, qnli=2, rte=2, wnli=2)


class Told(BertForSequenceClassification):
    """Output k is the number of words ck in the text, less a little for each x: texts say what is
    to be predicted."""

    def forward(self, input_ids, attention_mask, **_):
        size = self.config.num_labels
        counts = [
            (input_ids == C0 + k).sum(-1) - 0.1 * (input_ids == C0 + 3).sum(-1) for k in range(size)
        ]
        return SequenceClassifierOutput(logits=torch.stack(counts, -1).float())


def told(size, tokenizer=None, **config):
    model = Told(BertConfig(**BERT, num_labels=size, **config))
    return Subject("told", model, tokenizer or words(*WORDS))


def random_bert(size):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BERT, num_labels=size)).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    return Subject("random", model, words(*WORDS))


def logits_by_hand(model, texts):
    """Of one row by itself."""
    ids = [2]
    for text in texts:
        ids += [WORDS.index(word) + C0 for word in text.split()] + [3]
    second = ids.index(3) + 1
    kinds = [0] * second + [1] * (len(ids) - second)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits[0]


def written(folder, name, part, rows):
    """A file of the task's, with these rows of (texts, label as it is written)."""
    task = TASKS[name]
    header = list(task.headless) or [*task.texts, task.label]
    lines = [] if task.headless else ["\t".join(header)]
    for texts, label in rows:
        cells = dict(zip(task.texts, texts, strict=True)) | {task.label: label}
        lines.append("\t".join(cells.get(column, "-") for column in header))
    file = folder / task.folder / f"{part}.tsv"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def classified(folder, name, part, seed=0, rows=60):
    """Rows of random classes and random words that predict them, two thirds rightly. Returns
    predictions and labels."""
    task = TASKS[name]
    size = len(task.labels)
    generator = np.random.default_rng(seed)
    labels = generator.integers(size, size=rows)
    predictions = np.where(
        generator.random(rows) < 2 / 3, labels, generator.integers(size, size=rows)
    )
    spelled = task.written or task.labels
    texts = []
    for predicted in predictions:
        text = ["x"] * int(generator.integers(1, 9)) + [f"c{predicted}"]
        texts.append([" ".join(text), "y z"][: len(task.texts)])
    written(
        folder, name, part, [(t, spelled[label]) for t, label in zip(texts, labels, strict=True)]
    )
    return predictions.tolist(), labels.tolist()


def accuracy(predictions, labels):
    return np.mean(np.array(predictions) == np.array(labels))


def f1_and_matthews(predictions, labels):
    p, y = np.array(predictions) == 1, np.array(labels) == 1
    tp, fp, tn, fn = (int(cell.sum()) for cell in (p & y, p & ~y, ~p & ~y, ~p & y))
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return 2 * tp / (2 * tp + fp + fn), matthews


def values(measurement):
    return {name: metric.value for name, metric in measurement.metrics.items()}


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in ("stsb", "mnli")])
def test_classes_are_scored_with_glues_metrics(tmp_path, name):
    predictions, labels = classified(tmp_path, name, "dev")
    found = Glue(str(tmp_path), name, batch_size=7).measure(told(2), progress=False)
    f1, matthews = f1_and_matthews(predictions, labels)
    expected = {
        "cola": {"matthews": matthews},
        "mrpc": {"f1": f1, "accuracy": accuracy(predictions, labels)},
        "qqp": {"f1": f1, "accuracy": accuracy(predictions, labels)},
    }.get(name, {"accuracy": accuracy(predictions, labels)})
    assert values(found) == pytest.approx(expected, abs=1e-12)
    assert list(found.metrics) == list(expected)
    assert found.predictions == tuple(predictions)
    assert (found.task, found.items) == (f"glue {name}", 60)
    assert found.unit == ("sentences" if name in ("cola", "sst2") else "sentence pairs")
    assert found.samples[0].reference == TASKS[name].labels[labels[0]]
    assert found.samples[0].output == TASKS[name].labels[predictions[0]]


def test_mnli_is_scored_on_both_of_its_dev_sets(tmp_path):
    matched = classified(tmp_path, "mnli", "dev_matched", seed=1)
    mismatched = classified(tmp_path, "mnli", "dev_mismatched", seed=2, rows=40)
    found = Glue(str(tmp_path), "mnli").measure(told(3), progress=False)
    assert values(found) == pytest.approx(
        {"accuracy_matched": accuracy(*matched), "accuracy_mismatched": accuracy(*mismatched)}
    )
    assert found.main_metric == "accuracy_matched" and accuracy(*matched) != accuracy(*mismatched)
    assert found.items == 100 and found.predictions == tuple(matched[0] + mismatched[0])
    one = Glue(str(tmp_path), "mnli", "dev_mismatched").measure(told(3), progress=False)
    assert values(one) == {"accuracy": found.metrics["accuracy_mismatched"].value}


def test_scores_of_stsb_are_correlated_as_they_come_unrounded(tmp_path):
    generator = np.random.default_rng(0)
    numbers, labels, rows = [], [], []
    for _ in range(50):
        c, x = int(generator.integers(0, 6)), int(generator.integers(0, 9))
        label = round(float(np.clip(c + generator.normal(0, 1), 0, 5)), 2)
        numbers.append(np.float32(c - np.float32(0.1) * x))
        labels.append(label)
        rows.append((["z " + "c0 " * c, "y " + "x " * x], f"{label:.2f}"))
    written(tmp_path, "stsb", "dev", rows)
    found = Glue(str(tmp_path), "stsb").measure(told(1), progress=False)

    def pearson(a, b):
        return np.corrcoef(np.array(a, float), np.array(b, float))[0, 1]

    def ranks(values):
        values = np.array(values)
        return [(values < v).sum() + (values == v).sum() / 2 for v in values]

    assert found.predictions == pytest.approx(numbers, abs=1e-6)
    assert any(value != round(value) for value in found.predictions)
    assert found.metrics["pearson"].value == pytest.approx(pearson(numbers, labels), abs=1e-6)
    tidy = np.round(found.predictions, 12)
    assert found.metrics["spearman"].value == pytest.approx(
        pearson(ranks(tidy), ranks(labels)), abs=1e-6
    )
    assert found.main_metric == "pearson"


@pytest.mark.parametrize(
    "label2id",
    [
        {"neutral": 0, "contradiction": 1, "entailment": 2},
        {"CONTRADICTION": 0, "ENTAILMENT": 1, "Neutral": 2},
    ],
)
def test_a_model_that_names_its_classes_is_read_by_the_names(tmp_path, label2id):
    predictions, labels = classified(tmp_path, "mnli", "dev_matched")
    config = {"id2label": {place: name for name, place in label2id.items()}}
    task = Glue(str(tmp_path), "mnli", "dev_matched")
    found = task.measure(told(3, **config), progress=False)
    names = {place: name.lower() for name, place in label2id.items()}
    order = ["entailment", "neutral", "contradiction"]
    expected = [order.index(names[output]) for output in predictions]
    assert found.predictions == tuple(expected) and expected != predictions
    assert found.metrics["accuracy"].value == pytest.approx(accuracy(expected, labels))
    assert found.settings["label_order"] == "the model's names"
    unnamed = task.measure(told(3), progress=False)
    assert unnamed.predictions == tuple(predictions)
    assert unnamed.settings["label_order"] == "GLUE's"


def test_a_model_may_name_its_classes_as_glues_files_write_them(tmp_path):
    predictions, _ = classified(tmp_path, "sst2", "dev")
    subject = told(2, label2id={"1": 0, "0": 1}, id2label={0: "1", 1: "0"})
    found = Glue(str(tmp_path), "sst2").measure(subject, progress=False)
    assert found.predictions == tuple(1 - value for value in predictions)


@pytest.mark.parametrize("name", ["sst2", "rte", "stsb"])
def test_the_size_of_a_batch_changes_no_prediction(tmp_path, name):
    if name == "stsb":
        generator = np.random.default_rng(3)
        texts = [["x " * n + "c0", "y " * (9 - n)] for n in generator.integers(0, 9, 40)]
        written(tmp_path, name, "dev", [(text, str(i % 5)) for i, text in enumerate(texts)])
    else:
        classified(tmp_path, name, "dev", rows=40)
    subject, part = random_bert(SIZES[name]), Glue(str(tmp_path), name).parts[0]
    expected = torch.stack([logits_by_hand(subject.model, texts) for texts in part.sentences])
    if name != "stsb":
        # A random model prefers one class; from here on it is undecided on the whole.
        subject.model.classifier.bias.data -= expected.mean(0)
        expected = (expected - expected.mean(0)).argmax(-1, keepdim=True)
        assert 10 < expected.sum() < 30
    for size in (1, 3, 64):
        found = Glue(str(tmp_path), name, batch_size=size).measure(subject, progress=False)
        assert found.predictions == pytest.approx(expected[:, 0].tolist(), abs=1e-5)


def test_what_is_longer_than_the_model_reads_is_cut_and_counted(tmp_path):
    # 64 positions, two of which are special; the class is told by the last word.
    rows = [("x " * 61 + "c1", "1"), ("x " * 62 + "c1", "1"), ("c1", "1")]
    written(tmp_path, "sst2", "dev", [([text], label) for text, label in rows])
    found = Glue(str(tmp_path), "sst2").measure(told(2), progress=False)
    assert found.predictions == (1, 0, 1)
    assert (found.settings["truncated"], found.settings["max_length"]) == (1, 64)
    shorter = Glue(str(tmp_path), "sst2", max_length=3).measure(told(2), progress=False)
    assert shorter.predictions == (0, 0, 1)
    assert (shorter.settings["truncated"], shorter.settings["max_length"]) == (2, 3)


def test_modes_are_as_they_were_and_data_is_read_once(tmp_path):
    classified(tmp_path, "rte", "dev")
    subject = random_bert(2)
    subject.model.train()
    subject.model.bert.eval()
    modes = [module.training for module in subject.model.modules()]
    task = Glue(str(tmp_path), "rte")
    first = task.measure(subject, progress=False)
    assert [module.training for module in subject.model.modules()] == modes
    (tmp_path / "RTE" / "dev.tsv").unlink()
    assert task.measure(subject, progress=False) == first


def test_a_model_that_does_not_fit_is_wrong_use(tmp_path):
    classified(tmp_path, "rte", "dev")
    task = Glue(str(tmp_path), "rte")
    for name in ("bert", "bert-mlm", "gpt2", "bart"):
        with pytest.raises(UsageError, match="GLUE rte needs a sequence-classification model"):
            task.check(Subject(name, make(name), words(*WORDS)))
    with pytest.raises(UsageError, match="GLUE rte needs a model of 2 labels, not of 3"):
        task.check(told(3))
    with pytest.raises(UsageError, match="GLUE stsb needs a model of 1 labels, not of 2"):
        Glue(str(tmp_path), "stsb").check(told(2))
    with pytest.raises(UsageError, match="told has no tokenizer"):
        task.check(Subject("told", told(2).model, None))
    with pytest.raises(UsageError, match="GLUE task 'xnli' is unknown"):
        Glue(str(tmp_path), "xnli").check(told(2))
    with pytest.raises(UsageError, match="max_length 65 is longer than the model's 64"):
        Glue(str(tmp_path), "rte", max_length=65).check(told(2))
    with pytest.raises(UsageError, match="batch size must be at least 1, not 0"):
        Glue(str(tmp_path), "rte", batch_size=0).check(told(2))
    with pytest.raises(
        UsageError, match="no padding token, which a batch of 32 needs: set pad_token"
    ):
        task.check(told(2, words(*WORDS, pad=False)))
    config = GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1, n_positions=32)
    decoder = Subject("gpt2", GPT2ForSequenceClassification(config), words(*WORDS))
    with pytest.raises(UsageError, match="batch_size must be 1, not 32, .* no pad_token_id"):
        task.check(decoder)
    found = Glue(str(tmp_path), "rte", batch_size=1).measure(decoder, progress=False)
    assert found.items == 60


def test_a_missing_package_is_told_before_the_work(tmp_path, monkeypatch):
    classified(tmp_path, "rte", "dev")
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(InputError, match=r'scikit-learn: pip install "\.\[eval\]"'):
        Glue(str(tmp_path), "rte").check(told(2))


def test_data_that_cannot_be_scored_is_told(tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tx\ty\n")
    with pytest.raises(UsageError, match="test.tsv has no labels to score against"):
        Glue(str(tmp_path), "rte", "test").check(told(2))
    with pytest.raises(InputError, match="holds neither RTE/dev.tsv nor dev.tsv"):
        Glue(str(tmp_path), "rte").check(told(2))
    # A prediction needs no labels.
    task = Glue(str(tmp_path), "rte", "test")
    assert task.predict(told(2), task.parts[0], progress=False).values == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_whose_output_is_not_finite_is_told(tmp_path, value):
    classified(tmp_path, "rte", "dev")
    subject = random_bert(2)
    subject.model.classifier.bias.data[0] = value
    with pytest.raises(InputError, match="random computes logits on .*dev.tsv that are not finite"):
        Glue(str(tmp_path), "rte").measure(subject, progress=False)
