"""What is lost beside a reference, and its interval."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from lowbit.evaluation import scores
from lowbit.evaluation.bootstrap import loss
from lowbit.evaluation.study import Measurement, Metric
from lowbit.evaluation.task import Task
from lowbit.evaluation.tasks.translation import Translation


class Right(Task):
    """Scored by the share of predictions that are 1."""

    name = "right"

    def check(self, subject):
        raise NotImplementedError

    def measure(self, subject, progress=True):
        raise NotImplementedError

    def resampled(self, found):
        each = np.array(found.predictions)
        return lambda rows: float(each[rows].mean())


def measured(predictions, better="higher"):
    value = Metric(float(np.mean(predictions)), better)
    items = tuple(float(p) for p in predictions)
    return Measurement("right", "here", len(items), "items", {}, {"share": value}, (), items)


def test_what_is_lost_is_in_percent_of_the_reference_in_either_direction():
    before, after = measured([1] * 80 + [0] * 20), measured([1] * 76 + [0] * 24)
    assert loss(Right(), before, after).percent == pytest.approx(5.0)
    before, after = measured([1] * 80 + [0] * 20, "lower"), measured([1] * 84 + [0] * 16, "lower")
    assert loss(Right(), before, after).percent == pytest.approx(5.0)
    assert loss(Right(), measured([0, 0]), after) is None


def test_the_interval_is_that_of_a_paired_difference():
    """Few items differ, so that it is far narrower than for models of their own."""
    chance = np.random.default_rng(1)
    before = (chance.random(2000) < 0.8).astype(int)
    after = before.copy()
    after[chance.choice(np.flatnonzero(before), 20, replace=False)] = 0
    found = loss(Right(), measured(before), measured(after))
    # The difference is 20 of 2,000 items: a Poisson number of them in each draw.
    width = 2 * 1.96 * np.sqrt(20) / before.sum() * 100
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    assert found.low < found.percent < found.high
    assert f"({found.low:.2f} … {found.high:.2f})" in str(found)


def test_scores_without_items_have_no_interval():
    class Whole(Right):
        def resampled(self, found):
            return None

    found = loss(Whole(), measured([1, 1]), measured([1, 0]))
    assert (found.percent, found.low, found.high) == (50.0, None, None)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews", "pearson"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_of_draws_are_those_of_scikit_learn_and_scipy(name, seed):
    chance = np.random.default_rng(seed)
    predictions, labels = chance.integers(0, 2, (2, 30))
    if name == "pearson":
        predictions = predictions + chance.random(30)
    wanted = scores.SCORES[name](predictions.tolist(), labels.tolist())
    assert scores.drawn(name, predictions, labels) == pytest.approx(wanted, abs=1e-12)
    ones = np.ones(30, int)
    if name != "pearson":
        wanted = scores.SCORES[name](ones.tolist(), labels.tolist())
        assert scores.drawn(name, ones, labels) == pytest.approx(wanted, abs=1e-12)


def test_bleu_of_a_draw_is_that_of_its_lines(tmp_path):
    words = ["the", "cat", "sat", "on", "a", "mat", "now"]
    chance = np.random.default_rng(0)
    targets = [" ".join(chance.choice(words, 8)) for _ in range(30)]
    outputs = [" ".join([*t.split()[:5], *chance.choice(words, 2)]) for t in targets]
    (tmp_path / "pairs.tsv").write_text("".join(f"x\t{target}\n" for target in targets))
    task = Translation(str(tmp_path / "pairs.tsv"))
    found = Measurement("translation", "", 30, "sentences", {}, {}, (), tuple(outputs))
    score = task.resampled(found)
    for rows in (np.arange(30), chance.integers(0, 30, 30), np.array([3, 3, 4])):
        drawn = [outputs[row] for row in rows], [[targets[row] for row in rows]]
        assert score(rows) == pytest.approx(BLEU().corpus_score(*drawn).score, abs=1e-9)
