"""Scores of predictions against labels, as scikit-learn and scipy compute them.

A correlation is not defined, and so NaN, where all predictions or all labels are equal.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Shaped

from lowbit.evaluation.study import Metric
from lowbit.extras import needed

Score = Callable[[Sequence[float], Sequence[float]], float]


def accuracy(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """The share of equal ones."""
    metrics = needed("sklearn.metrics", "scikit-learn", "eval")
    return float(metrics.accuracy_score(labels, predictions))


def f1(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Of class 1; 0 where there is none of it in either."""
    metrics = needed("sklearn.metrics", "scikit-learn", "eval")
    return float(metrics.f1_score(labels, predictions, zero_division=0.0))


def matthews(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Matthews' correlation of two classes; 0 where all predictions are of one."""
    metrics = needed("sklearn.metrics", "scikit-learn", "eval")
    return float(metrics.matthews_corrcoef(labels, predictions))


def pearson(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Linear correlation."""
    return _correlation("pearsonr", predictions, labels)


def spearman(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Correlation of ranks; equal values share the mean of theirs."""
    return _correlation("spearmanr", predictions, labels)


SCORES: dict[str, Score] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def drawn(
    name: str, predictions: Shaped[np.ndarray, " items"], labels: Shaped[np.ndarray, " items"]
) -> float:
    """The same score by NumPy, for thousands of resamples: scikit-learn needs a millisecond per
    call to check arguments. Does not include rank correlations."""
    if name == "accuracy":
        return float((predictions == labels).mean())
    if name == "pearson":
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.corrcoef(predictions, labels)[0, 1])
    found, wanted = predictions == 1, labels == 1
    both, neither = int((found & wanted).sum()), int((~found & ~wanted).sum())
    too_many, missed = int((found & ~wanted).sum()), int((~found & wanted).sum())
    if name == "f1":
        return 2 * both / max(1, 2 * both + too_many + missed)
    size = (both + too_many) * (both + missed) * (neither + too_many) * (neither + missed)
    return (both * neither - too_many * missed) / math.sqrt(size) if size else 0.0


def metric(name: str, predictions: Sequence[float], labels: Sequence[float]) -> Metric:
    """A score of the table as a metric."""
    value = SCORES[name](predictions, labels)
    undefined = value != value
    return Metric(value, "higher", "undefined: all values are equal" if undefined else "")


def check(names: Iterable[str]) -> None:
    """Raises InputError if a package for one of these scores is missing."""
    for name in names:
        SCORES[name]([0, 1], [0, 1])


def _correlation(name: str, predictions: Sequence[float], labels: Sequence[float]) -> float:
    stats = needed("scipy.stats", "scipy", "eval")
    with warnings.catch_warnings():
        # The metric's note says it.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(getattr(stats, name)(predictions, labels).statistic)
