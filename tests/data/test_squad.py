import json

import pytest

from lowbit import InputError
from lowbit.data import squad
from lowbit.data.squad import Answer, Question
from tests import real

CONTEXT = "Zoë paid 5 € in Köln."


def article(answers=None, **changes):
    question = {
        "id": "q1",
        "question": "Where?",
        "answers": answers if answers is not None else [{"text": "Köln", "answer_start": 16}],
    }
    return {"title": "t", "paragraphs": [{"context": CONTEXT, "qas": [question | changes]}]}


def written(tmp_path, stored):
    file = tmp_path / "dev.json"
    file.write_text(stored if isinstance(stored, str) else json.dumps(stored), encoding="utf-8")
    return file


def test_questions_come_with_their_context_and_all_answers(tmp_path):
    answers = [{"text": "Köln", "answer_start": 16}, {"text": "in Köln", "answer_start": 13}]
    file = written(tmp_path, {"version": "1.1", "data": [article(), article(answers, id="q2")]})
    expected = (
        Question("q1", "Where?", CONTEXT, (Answer("Köln", 16),)),
        Question("q2", "Where?", CONTEXT, (Answer("Köln", 16), Answer("in Köln", 13))),
    )
    found = squad.read(file)
    assert found.questions == expected and found.source == str(file)
    assert squad.read(tmp_path).questions == expected


def without(key):
    stored = article()
    for holder in (stored, stored["paragraphs"][0], stored["paragraphs"][0]["qas"][0]):
        holder.pop(key, None)
    return {"data": [stored]}


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ("", "is empty"),
        ("{'data': []}", r"is not JSON: .* in line 1, column 2"),
        ('{"data": [1,\n]}', r"is not JSON: .* in line 2, column 1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data": ' + "9" * 5000 + "}", "is not JSON that can be read"),
        ([], "has no 'data'"),
        ({"data": {}}, "'data' is of type dict, not list"),
        ({"data": [{}]}, "article 1 has no 'paragraphs'"),
        ({"data": [7]}, "article 1 has no 'paragraphs'"),
        ({"data": []}, "has no questions"),
        ({"data": [{"paragraphs": []}]}, "has no questions"),
        (without("context"), "article 1, paragraph 1 has no 'context'"),
        (without("qas"), "article 1, paragraph 1 has no 'qas'"),
        (without("id"), "paragraph 1, question 1 has no 'id'"),
        (without("question"), r"question 1 \(q1\) has no 'question'"),
        ({"data": [article(question=5)]}, "'question' is of type int, not str"),
        ({"data": [article(question="\ud800")]}, "'question' holds half of a surrogate pair"),
        ({"data": [article([{"text": "Köln"}])]}, r"\(q1\) has no 'answer_start'"),
        (
            {"data": [article([{"text": "Köln", "answer_start": "16"}])]},
            "'answer_start' is of type str, not int",
        ),
        (
            {"data": [article([{"text": "Köln", "answer_start": True}])]},
            "'answer_start' is of type bool, not int",
        ),
        (
            {"data": [article(), article([{"text": "Köln", "answer_start": 15}], id="q7")]},
            r"article 2, .*\(q7\): the context has ' Köl' at character 15, not the answer 'Köln'",
        ),
        # −5 would be the right place from the end.
        ({"data": [article([{"text": "Köln", "answer_start": -5}])]}, "at character -5, not"),
        ({"data": [article([{"text": "Köln", "answer_start": 99}])]}, "at character 99, not"),
    ],
)
def test_what_is_no_squad_file_is_one_sentence(tmp_path, stored, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        squad.read(written(tmp_path, stored))
    assert "\n" not in str(error.value)


def test_what_is_not_there_or_too_large_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nothing.json cannot be read: No such file"):
        squad.read(tmp_path / "nothing.json")
    with pytest.raises(InputError, match=r"holds no file dev\*.json"):
        squad.read(tmp_path)
    file = written(tmp_path, {"data": [article()]})
    (tmp_path / "dev-v2.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds 2 files dev\*.json \(dev.*\): leave one"):
        squad.read(tmp_path)
    monkeypatch.setattr(squad, "MOST_BYTES", 20)
    with pytest.raises(InputError, match=r"has \d+ bytes; at most 20 are read"):
        squad.read(file)


def test_xquad_is_read_whole():
    found = squad.read(real.data("squad", "xquad.en.json"))
    assert len(found.questions) == 1190
    assert len({question.context for question in found.questions}) == 240
    for question in found.questions:
        for answer in question.answers:
            end = answer.start + len(answer.text)
            assert answer.text and question.context[answer.start : end] == answer.text


@pytest.mark.parametrize("stored", [without("answers"), {"data": [article([])]}])
def test_questions_of_a_test_set_have_no_answers_to_score_against(tmp_path, stored):
    found = squad.read(written(tmp_path, stored))
    assert [question.answers for question in found.questions] == [()]
    with pytest.raises(InputError, match=r"dev.json, question q1 has no answers; SQuAD 1.1 has"):
        found.check_answers()
