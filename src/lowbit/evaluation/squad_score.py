"""SQuAD 1.1's exact match and F1 (Rajpurkar et al. 2016), as its official script defines them.

    normalize(text)   lower case; no ASCII punctuation; no a, an, the; words parted by one space
    exact match       normalize(prediction) = normalize(answer)
    F1                of the words that both have, as often as both have them

A question's score is that of the answer which gives the most.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """The normalized text of an answer."""
    words = ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION))
    return " ".join(words.split())


def exact_match(prediction: str, answer: str) -> float:
    """1.0 or 0.0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words; 0 if no word is shared, also for two
    empty texts."""
    predicted, expected = normalize(prediction).split(), normalize(answer).split()
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def best(score: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The best score over all answers."""
    return max(score(prediction, answer) for answer in answers)
