import json

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from lowbit import InputError, UsageError
from lowbit.evaluation.predict import predict
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.squad import Squad
from tests.glue_files import FILES
from tests.models import BERT
from tests.small_tokenizers import words


@pytest.fixture
def glue(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path)


def classifier(labels):
    torch.manual_seed(0)
    config = BertConfig(**BERT, num_labels=labels)
    return Subject("bert", BertForSequenceClassification(config).eval(), words("a", "b"))


def test_a_file_of_predictions_is_that_of_one_file(glue):
    with pytest.raises(UsageError, match="the split test_matched or test_mismatched"):
        list(predict("glue", classifier(3), glue, "test", progress=False, name="mnli"))
    lines = list(predict("glue", classifier(3), glue, "test_matched", progress=False, name="mnli"))
    assert [line.split("\t")[0] for line in lines] == ["index", "0"]


def test_a_cut_row_would_shift_the_numbers_of_the_others(glue):
    with pytest.raises(InputError, match="train.tsv has 1 incomplete rows"):
        list(predict("glue", classifier(2), glue, "train", progress=False, name="qqp"))
    assert len(list(predict("glue", classifier(2), glue, "test", progress=False, name="qqp"))) == 2


def test_questions_are_answered_whether_or_not_their_answers_are_known(tmp_path):
    questions = [{"id": "1", "question": "a"}, {"id": "2", "question": "b", "answers": []}]
    stored = {"data": [{"paragraphs": [{"context": "a b a", "qas": questions}]}]}
    (tmp_path / "test.json").write_text(json.dumps(stored))
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**BERT | {"max_position_embeddings": 384})).eval()
    subject = Subject("bert", model, words("a", "b"))
    [line] = predict("squad", subject, str(tmp_path), "test", progress=False)
    answers = json.loads(line)
    assert answers.keys() == {"1", "2"} and all(a in "a b a" for a in answers.values())
    with pytest.raises(InputError, match=r"test.json, question 1 has no answers"):
        Squad(str(tmp_path), "test").check(subject)
