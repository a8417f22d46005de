"""Against the formulas, written out in NumPy."""

import sys
import warnings

import numpy as np
import pytest

from lowbit import InputError
from lowbit.evaluation import scores


def confusion(predictions, labels):
    """True and false positives, true and false negatives."""
    predictions, labels = np.array(predictions), np.array(labels)
    return (
        int(((predictions == 1) & (labels == 1)).sum()),
        int(((predictions == 1) & (labels == 0)).sum()),
        int(((predictions == 0) & (labels == 0)).sum()),
        int(((predictions == 0) & (labels == 1)).sum()),
    )


def matthews(predictions, labels):
    tp, fp, tn, fn = confusion(predictions, labels)
    return (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def f1(predictions, labels):
    tp, fp, _, fn = confusion(predictions, labels)
    return 2 * tp / (2 * tp + fp + fn)


def pearson(x, y):
    x, y = np.array(x) - np.mean(x), np.array(y) - np.mean(y)
    return (x @ y) / np.sqrt((x @ x) * (y @ y))


def ranks(values):
    """From 1, equal values share the mean of theirs: 1 + the smaller ones + half the other equal
    ones."""
    values = np.array(values)
    smaller = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return 1 + smaller + (equal - 1) / 2


def spearman(x, y):
    return pearson(ranks(x), ranks(y))


ORACLES = {
    "accuracy": lambda predictions, labels: np.mean(np.array(predictions) == np.array(labels)),
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_of_classes_are_their_formulas(name, seed):
    generator = np.random.default_rng(seed)
    labels = (generator.random(97) < 0.7).astype(int).tolist()
    predictions = np.where(generator.random(97) < 0.3, 1 - np.array(labels), labels).tolist()
    found = scores.metric(name, predictions, labels)
    assert found.value == pytest.approx(ORACLES[name](predictions, labels), abs=1e-12)
    assert found.better == "higher" and not found.note


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_correlations_are_their_formulas_also_with_ties(name, decimals):
    generator = np.random.default_rng(decimals)
    labels = (generator.random(83) * 5).round(decimals).tolist()
    predictions = (np.exp(np.array(labels)) + generator.normal(0, 9, 83)).round(decimals).tolist()
    found = scores.metric(name, predictions, labels)
    assert found.value == pytest.approx(ORACLES[name](predictions, labels), abs=1e-12)
    assert 0.5 < found.value < 0.99


def test_the_two_correlations_and_the_two_class_scores_differ():
    x, y = [0.0, 1.0, 2.0, 10.0], [0.0, 1.0, 4.0, 5.0]
    assert scores.spearman(x, y) == pytest.approx(1) and scores.pearson(x, y) < 0.9
    # By hand: tp 2, fp 1, tn 0, fn 1.
    predictions, labels = [1, 1, 1, 0], [1, 1, 0, 1]
    assert scores.f1(predictions, labels) == pytest.approx(2 / 3)
    assert scores.matthews(predictions, labels) == pytest.approx(-1 / 3)


def test_one_class_only_gives_zero_and_constants_correlate_with_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores.matthews([1, 1, 1], [1, 0, 1]) == 0
        assert scores.f1([0, 0], [0, 0]) == 0
        for name in ("pearson", "spearman"):
            found = scores.metric(name, [2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
            assert np.isnan(found.value) and found.note == "undefined: all values are equal"


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("f1", "sklearn.metrics", "scikit-learn"), ("pearson", "scipy.stats", "scipy")],
)
def test_a_missing_package_is_one_sentence(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'needs the package {package}: pip install "\.\[ev'):
        scores.check([name])
