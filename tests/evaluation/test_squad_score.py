"""Golden values, worked out by hand from the definition in the SQuAD paper, section 6.1."""

import pytest

from lowbit.evaluation.squad_score import best, exact_match, f1, normalize


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Panthers", "panthers"),
        ("a An THE", ""),
        ("An apple a day, the doctor said!", "apple day doctor said"),
        # Only whole words are articles.
        ("another theory, banana", "another theory banana"),
        # Punctuation goes first and leaves no gap: what it joins is one word …
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("the-end", "theend"),
        # … and may make an article of its neighbours.
        ("t-h-e end", "end"),
        ("A.", ""),
        ("$5,000.50", "500050"),
        ("  many \t\n  spaces ", "many spaces"),
        ("no\u00a0break", "no break"),
        # Only ASCII punctuation is removed, and only lower case is levelled.
        ("“Köln” – Nord", "“köln” – nord"),
        ("ÉCOLE", "école"),
        ("Straße", "straße"),
        # An article beside a sign that is no part of a word.
        ("l’a", "l’"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalized_answers(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "overlap"),
    [
        ("Denver Broncos", "Denver Broncos", 1, 1),
        ("the denver broncos.", "Denver Broncos", 1, 1),
        # One of one word right, of two expected: 2·1·½ / 1½.
        ("Broncos", "Denver Broncos", 0, 2 / 3),
        # Precision 2/4, recall 2/2.
        ("in Santa Clara, California", "Santa Clara", 0, 2 / 3),
        # Order does not matter to F1.
        ("Clara Santa", "Santa Clara", 0, 1),
        # A word counts as often as both have it: 2 shared of 3 and of 2.
        ("very very very", "very very", 0, 4 / 5),
        ("very", "very very very", 0, 1 / 2),
        ("Oslo", "Bergen", 0, 0),
        ("", "Bergen", 0, 0),
        ("Bergen", "", 0, 0),
        # Both empty: they match, but share no word; the script of version 1.1 says 0.
        ("", "", 1, 0),
        ("the", "a", 1, 0),
        ("5 €", "5", 0, 2 / 3),
        ("5 $", "5", 1, 1),
        ("KÖLN", "köln", 1, 1),
        # o and a combining diaeresis is not ö.
        ("Ko\u0308ln", "Köln", 0, 0),
    ],
)
def test_scores_of_one_answer(prediction, answer, exact, overlap):
    assert exact_match(prediction, answer) == exact
    assert f1(prediction, answer) == pytest.approx(overlap, abs=1e-12)


def test_the_best_of_the_answers_counts_for_each_score_by_itself():
    answers = ["Oslo in Norway", "Bergen", "city of Oslo"]
    assert best(f1, "Oslo", answers) == pytest.approx(1 / 2)
    assert best(f1, "Oslo, Norway", answers) == pytest.approx(4 / 5)
    assert best(exact_match, "Oslo, Norway", answers) == 0
    assert best(exact_match, "the Bergen", answers) == 1
