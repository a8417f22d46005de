"""Golden entities, by the rules of CoNLL's script conlleval."""

import pytest

from lowbit.evaluation.entity_score import entities, marks_entities


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        # Two that touch.
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        # Inside, of another kind or after nothing: one begins.
        ("I-PER I-PER O I-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        # To the end of the sentence.
        ("O B-MISC I-MISC", {("MISC", 1, 3)}),
        # IOBES.
        ("S-PER S-PER B-LOC I-LOC E-LOC", {("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 5)}),
        ("E-PER I-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        # A kind may have a dash.
        ("B-work-of-art I-work-of-art", {("work-of-art", 0, 2)}),
    ],
)
def test_entities_of_a_sentence(labels, found):
    assert entities(labels.split()) == found


def test_parts_of_speech_mark_no_entities():
    assert not marks_entities(["NOUN", "VERB", "O", "X-RAY"])
    assert marks_entities(["O", "I-PER"])
