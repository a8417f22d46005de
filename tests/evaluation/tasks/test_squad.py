import json
import math

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, PythonBackend
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from lowbit import InputError, UsageError
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.squad import Squad
from tests.models import BERT, make
from tests.small_tokenizers import words

WORDS = ["who", "where", "<", ">", "a", "b", "c", "d", "e", "x"]
OPEN, CLOSE = 4 + WORDS.index("<"), 4 + WORDS.index(">")


class Told(BertForQuestionAnswering):
    """The answer is from one < to one >: contexts say what is to be found."""

    def forward(self, input_ids, **_):
        noise = torch.arange(input_ids.shape[1]) * 1e-3
        return QuestionAnsweringModelOutput(
            start_logits=10.0 * (input_ids == OPEN) - noise,
            end_logits=10.0 * (input_ids == CLOSE) + noise,
        )


@pytest.fixture(scope="module")
def told():
    return Subject("told", Told(BertConfig(**BERT)), words(*WORDS))


def asked(tmp_path, *triples):
    """A file of (context, question, golden answers)."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": str(number),
                    "question": question,
                    "answers": [
                        {"text": answer, "answer_start": context.index(answer)}
                        for answer in answers
                    ],
                }
            ],
        }
        for number, (context, question, answers) in enumerate(triples)
    ]
    file = tmp_path / "dev.json"
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return str(file)


def test_answers_are_pieces_of_the_context_as_it_is_written(tmp_path, told):
    data = asked(
        tmp_path,
        ("a  b <  ö\t€ > c", "who", ["<  ö\t€ >"]),
        ("< > x", "where < >", ["x"]),
        ("a < b > c < d", "who who who", ["b >", "b"]),
    )
    found = Squad(data, max_length=32, stride=4).measure(told, progress=False)
    assert found.predictions == ("<  ö\t€ >", "< >", "< b >")
    # Of one word each: all three, none, "b". "< >" is nothing but punctuation.
    assert found.metrics["exact_match"].value == pytest.approx(2 / 3)
    assert found.metrics["f1"].value == pytest.approx(2 / 3)
    assert (found.items, found.unit, found.main_metric) == (3, "questions", "f1")
    assert found.samples[1].source == "where < >" and found.samples[1].reference == "x"


@pytest.mark.parametrize("position", [0, 1, 20, 37, 38, 39, 40, 41, 77, 100, 148])
@pytest.mark.parametrize("stride", [0, 1, 10])
def test_an_answer_is_found_wherever_it_lies_in_a_long_context(tmp_path, told, position, stride):
    context = ["x"] * 150
    context[position : position + 2] = ["<", ">"]
    context = " ".join(context)
    task = Squad(asked(tmp_path, (context, "who", ["< >"])), max_length=40, stride=stride)
    found = task.measure(told, progress=False)
    # With an overlap a pair of words is never torn apart.
    torn = stride == 0 and position % 36 == 35
    assert found.predictions == ("< >",) or torn
    # 40 − 3 special − 1 of the question = 36 of the context in each window.
    expected = 1 + math.ceil((150 - 36) / (36 - stride))
    assert found.settings["windows"] == expected


def test_a_question_too_long_for_the_windows_is_cut_and_counted(tmp_path, told):
    # 20 − 3 special − 2 · 5 leaves 7 words.
    for words_asked, cut in ((7, 0), (8, 1), (50, 1)):
        data = asked(tmp_path, ("a < b > c", "  " + "who " * words_asked, ["< b >"]))
        found = Squad(data, max_length=20, stride=5).measure(told, progress=False)
        assert found.predictions == ("< b >",) and found.settings["truncated"] == cut


def test_answers_are_no_longer_than_they_may_be(tmp_path, told):
    data = asked(tmp_path, ("< a b c > d", "who", ["c"]))
    for most, expected in ((5, "< a b c >"), (4, "a b c >")):
        found = Squad(data, max_length=32, stride=4, max_answer_length=most)
        # Without the best start, the end with the start that costs least.
        assert found.measure(told, progress=False).predictions == (expected,)
    # The best start and the best end only, which do not fit each other.
    task = Squad(data, max_length=32, stride=4, max_answer_length=4, n_best=1)
    assert task.measure(told, progress=False).predictions == ("",)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_span_is_that_of_a_search_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 25, generator=generator)
    spans = [None if i < 4 or i in (9, 24) else (3 * i, 3 * i + 2) for i in range(25)]
    best = (-math.inf,)
    for i in range(25):
        for j in range(25):
            if spans[i] and spans[j] and i <= j <= i + 4:
                score = (logits[0, i] + logits[1, j]).item()
                best = max(best, (score, 3 * i, 3 * j + 2))
    assert Squad("", max_answer_length=5, n_best=25).best_span(logits, spans) == best
    # Of the three best starts and ends only.
    starts = sorted(range(25), key=lambda i: -logits[0, i])[:3]
    ends = sorted(range(25), key=lambda i: -logits[1, i])[:3]
    possible = [
        ((logits[0, i] + logits[1, j]).item(), 3 * i, 3 * j + 2)
        for i in starts
        for j in ends
        if spans[i] and spans[j] and i <= j <= i + 4
    ]
    found = Squad("", max_answer_length=5, n_best=3).best_span(logits, spans)
    assert found == max(possible, default=None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_size_of_a_batch_changes_no_answer(tmp_path, side):
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**BERT)).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    tokenizer = words(*WORDS)
    tokenizer.padding_side = side
    # Padded on the left, words stand elsewhere: the model must be told where.
    model.bert.embeddings.position_embeddings.weight.data.zero_()
    generator = torch.Generator().manual_seed(1)
    triples = []
    for number in range(15):
        picked = torch.randint(4, 10, (5 + 7 * number,), generator=generator)
        triples.append((" ".join(WORDS[i] for i in picked), "who " * (1 + number % 4), [""]))
    data = asked(tmp_path, *triples)
    found = [
        Squad(data, max_length=40, stride=8, batch_size=size)
        .measure(Subject("random", model, tokenizer), progress=False)
        .predictions
        for size in (1, 4, 100)
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 5


def test_a_model_or_options_that_do_not_fit_are_wrong_use(tmp_path, told):
    data = asked(tmp_path, ("a < b > c", "who", ["< b >"]))
    for name in ("bert", "bert-classifier", "gpt2", "bart"):
        with pytest.raises(UsageError, match="SQuAD needs a question-answering model, not "):
            Squad(data).check(Subject(name, make(name), words(*WORDS)))
    with pytest.raises(UsageError, match="max_length 384 is longer than the model's 64 positions"):
        Squad(data).check(told)
    with pytest.raises(
        UsageError,
        match=r"\(--max-length\) that overlap by 31 .* at most --stride 30 fits",
    ):
        Squad(data, max_length=64, stride=31).check(told)
    Squad(data, max_length=64, stride=30).check(told)
    with pytest.raises(UsageError, match="max_answer_length 0, n_best 20 and stride 4 must be"):
        Squad(data, max_length=64, stride=4, max_answer_length=0).check(told)
    with pytest.raises(UsageError, match="stride -1 must be"):
        Squad(data, max_length=64, stride=-1).check(told)
    with pytest.raises(UsageError, match="batch size must be at least 1, not 0"):
        Squad(data, max_length=64, stride=4, batch_size=0).check(told)
    with pytest.raises(UsageError, match="told has no tokenizer"):
        Squad(data).check(Subject("told", told.model, None))

    class Slow(PythonBackend):
        def __init__(self):
            pass

    with pytest.raises(UsageError, match="needs a fast tokenizer, .* not Slow"):
        Squad(data).check(Subject("told", told.model, Slow()))
    with pytest.raises(InputError, match="absent.json cannot be read"):
        Squad(str(tmp_path / "absent.json"), max_length=64, stride=4).check(told)


def test_a_model_whose_output_is_not_finite_is_told(tmp_path):
    model = BertForQuestionAnswering(BertConfig(**BERT)).eval()
    model.qa_outputs.bias.data[0] = math.nan
    data = asked(tmp_path, ("a < b > c", "who", ["< b >"]))
    with pytest.raises(InputError, match="broken computes logits on .* that are not finite"):
        Squad(data, max_length=64, stride=4).measure(
            Subject("broken", model, words(*WORDS)), progress=False
        )
