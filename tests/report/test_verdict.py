"""The verdict says what the numbers say, in words a manager reads."""

import math
from dataclasses import replace

import pytest

from lowbit.evaluation.study import Measurement, Metric, ModelRecord, Study, Timing
from lowbit.report.comparison import Change
from lowbit.report.scoreboard import figures
from lowbit.report.verdict import model_verdict, overall_verdict

MIB = 1 << 20


def record(name, size, speedups=(), **metrics):
    """metrics: name=(value, better); each is a task of its own."""
    timings = tuple(
        Timing(1, 16 * (i + 1), 0, 5, 2, 1.0, 0.1, gain) for i, gain in enumerate(speedups)
    )
    measurements = tuple(
        Measurement(task, "file", 10, "items", {}, {task: Metric(value, better)})
        for task, (value, better) in metrics.items()
    )
    return ModelRecord(
        name, None, "A", None, 1, 4.0, size, None, size, None, None, (), (), measurements, timings
    )


def study(*records):
    return Study(records, {}, 0)


def verdict(reference, model):
    return model_verdict(study(reference, model), 1)


FLOAT = record("gpt2", 310 * MIB, perplexity=(49.5, "lower"))


def test_the_sentence_of_the_manager():
    int4 = record("int4", 100 * MIB, (1.8,), perplexity=(50.35, "lower"))
    assert verdict(FLOAT, int4) == (
        "int4 is 3.1× smaller and 1.8× as fast;"
        " perplexity rises by 1.7 % (49.5 → 50.4; lower is better)."
    )


@pytest.mark.parametrize(
    ("speedups", "words"),
    [
        ((), "its speed was not measured"),
        ((None,), "its speed was only measured without the reference"),
        ((0.5,), "but slower (0.50× the speed of gpt2)"),
        ((0.5, 0.8), "but slower (0.50× to 0.80× the speed of gpt2 over 2 shapes)"),
        ((0.5, 2.0), "0.50× to 2.0× as fast over 2 shapes, so slower in some"),
        ((1.01,), "about as fast (1.01×)"),
        ((1.5, 3.0, 2.0), "1.5× to 3.0× as fast over 3 shapes"),
        ((12.4,), "12× as fast"),
    ],
)
def test_speed_is_said_as_it_is(speedups, words):
    sentence = verdict(FLOAT, record("m", MIB, speedups))
    assert words in sentence
    assert ("slower" in sentence) == any(gain is not None and gain < 1 for gain in speedups)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (155 * MIB, "2.0× smaller"),
        (620 * MIB, "2.0× larger"),
        (311 * MIB, "about the same size"),
        (0, "of unmeasured size"),
    ],
)
def test_size_is_said_as_it_is(size, words):
    assert verdict(FLOAT, record("m", size)).startswith(f"m is {words}")


@pytest.mark.parametrize(
    ("before", "after", "better", "words"),
    [
        (50.0, 55.0, "lower", "rises by 10.0 % (50 → 55; lower is better)"),
        (50.0, 45.0, "lower", "falls by 10.0 % (50 → 45; lower is better)"),
        (50.0, 3000.0, "lower", "is 60× as high (50 → 3,000; lower is better)"),
        (49.5, 49.501, "lower", "rises by less than 0.01 % (49.5 → 49.501; lower is better)"),
        (50.0, 50.0, "lower", "is unchanged (50)"),
        (0.0, 0.5, "lower", "rises by 0.5 (0 → 0.5; lower is better)"),
        (0.644, 0.612, "higher", "falls by 0.032 (0.644 → 0.612; higher is better)"),
        (28.27, 28.97, "higher", "rises by 0.7 (28.3 → 29; higher is better)"),
        (-0.2, 0.1, "higher", "rises by 0.3 (−0.2 → 0.1; higher is better)"),
        (50.0, math.nan, "lower", "is not a number (it was 50): the model is broken"),
        (50.0, math.inf, "lower", "goes from 50 to ∞ (lower is better)"),
        (math.nan, 50.0, "lower", "goes from not a number to 50 (lower is better)"),
    ],
)
def test_quality_is_said_as_it_is(before, after, better, words):
    sentence = verdict(
        record("float", MIB, score=(before, better)), record("m", MIB, score=(after, better))
    )
    assert sentence == f"m is about the same size; its speed was not measured; score {words}."


def test_what_was_not_measured_is_said():
    assert "its quality was not measured" in verdict(FLOAT, record("m", MIB))
    alone = verdict(record("float", MIB), record("m", MIB, bleu=(20.0, "higher")))
    assert "bleu is 20 (higher is better), with nothing to compare it with" in alone


def test_other_items_are_not_compared():
    other = record("m", MIB, perplexity=(10.0, "lower"))
    other = replace(other, measurements=(replace(other.measurements[0], items=9),))
    assert "nothing to compare it with" in verdict(FLOAT, other)


def test_of_several_models_the_best_at_each_thing_is_named():
    words = overall_verdict(
        study(
            FLOAT,
            record("small", 10 * MIB, (0.9,), perplexity=(math.nan, "lower")),
            record("quick", 100 * MIB, (3.0, 2.0), perplexity=(60.0, "lower")),
            record("good", 150 * MIB, (2.0,), perplexity=(49.9, "lower")),
        )
    )
    assert "small is the smallest (31× smaller)" in words
    assert "quick is the fastest (2.4× as fast on average)" in words
    assert "good has the best perplexity (49.9, +0.8 %)" in words


def test_models_of_one_name_are_told_apart():
    twins = record("m", MIB, (0.5,)), record("m", MIB, (3.0,))
    assert "m is the fastest (3.0× as fast)" in overall_verdict(study(FLOAT, *twins))


def test_overall_says_when_nothing_is_faster_or_measured():
    slow = [record(name, MIB, (0.5,)) for name in "ab"]
    assert "none is faster" in overall_verdict(study(FLOAT, *slow))
    bare = overall_verdict(study(record("f", MIB), record("a", MIB), record("b", MIB)))
    assert "speed was not compared" in bare and "quality was not measured" in bare
    assert "nothing to compare it with" in overall_verdict(study(FLOAT))


def test_one_quantized_model_is_the_whole_verdict():
    both = study(FLOAT, record("m", MIB))
    assert overall_verdict(both) == model_verdict(both, 1)


@pytest.mark.parametrize(
    ("before", "after", "better", "effect", "words"),
    [
        (2.0, 3.0, "lower", "worse", "+50.0 %"),
        (2.0, 1.0, "lower", "better", "−50.0 %"),
        (2.0, 20.0, "lower", "worse", "10×"),
        (0.5, 0.4, "higher", "worse", "−0.1"),
        (0.5, 0.6, "higher", "better", "+0.1"),
        (0.5, 0.5, "higher", "same", "±0"),
        (0.5, math.nan, "higher", "unknown", ""),
        (0.5, math.inf, "lower", "worse", ""),
    ],
)
def test_a_change_respects_which_way_is_better(before, after, better, effect, words):
    change = Change(Metric(before, better), Metric(after, better))
    assert (change.effect, change.words) == (effect, words)


def test_the_scoreboard_marks_what_is_worse():
    model = record("m", 620 * MIB, (0.5, 0.6), perplexity=(60.0, "lower"))
    size, speed, quality = figures(study(FLOAT, model), 1)
    assert (size.value, size.label, size.effect) == ("2.0×", "larger", "worse")
    assert (speed.value, speed.effect) == ("0.50–0.60×", "worse")
    assert (quality.value, quality.effect) == ("+21.2 %", "worse")
    bare = figures(study(FLOAT, record("m", 0)), 1)
    assert [f.value for f in bare] == ["–", "–", "–"] and not any(f.effect for f in bare)


def measured(name, value, low, high):
    made = record(name, 100 * MIB, perplexity=(value, "lower"))
    (found,) = made.measurements
    metric = Metric(value, "lower", low=low, high=high)
    return replace(made, measurements=(replace(found, metrics={"perplexity": metric}),))


def test_models_whose_intervals_overlap_have_no_best():
    close = measured("one", 49.6, 49.4, 49.8), measured("two", 49.7, 49.5, 49.9)
    far = measured("three", 53.0, 52.0, 54.0)
    words = overall_verdict(study(FLOAT, *close, far))
    assert "the perplexity of one and two is the same within noise" in words
    assert "has the best" not in words
    assert "one has the best perplexity" in overall_verdict(study(FLOAT, close[0], far))


def test_a_change_too_small_for_its_number_is_said_in_words():
    less, more = Metric(423.72, "lower"), Metric(423.74, "lower")
    assert Change(more, less).words == "< 0.01 % lower"
    assert Change(less, more).words == "< 0.01 % higher"
    int8 = record("int8", 100 * MIB, perplexity=(423.72, "lower"))
    assert "falls by less than 0.01 %" in verdict(
        record("f", 200 * MIB, perplexity=(423.74, "lower")), int8
    )
    both = study(
        record("f", 9, perplexity=(423.74, "lower")),
        int8,
        record("int4", 9, perplexity=(500, "lower")),
    )
    assert "int8 has the best perplexity (423.7, < 0.01 % lower)" in overall_verdict(both)


@pytest.mark.parametrize(
    ("value", "low", "high", "effect"),
    [
        (50.2, 49.4, 51.0, "noise"),
        (50.2, 49.6, 51.0, "worse"),
        (49.0, 48.5, 49.4, "better"),
        (49.5, 49.4, 49.6, "same"),
    ],
)
def test_a_change_is_noise_if_its_interval_holds_the_reference(value, low, high, effect):
    before, after = Metric(49.5, "lower"), Metric(value, "lower", "", low, high)
    assert Change(before, after).effect == effect
    assert ("within noise" in moved(before, after)) == (effect == "noise")


def moved(before, after):
    models = []
    for metric in (before, after):
        measured = Measurement("perplexity", "file", 10, "items", {}, {"perplexity": metric})
        models.append(replace(record("m", 9), measurements=(measured,)))
    return verdict(*models)


def in_rounds(record, *faster_in):
    """The same record: in so many of five rounds the reference took longer, by shape."""
    timings = zip(record.timings, faster_in, strict=True)
    return replace(record, timings=tuple(replace(t, faster_in=n) for t, n in timings))


def test_rounds_that_contradict_each_other_are_noise():
    slower = record("int4", 98 * MIB, (0.8,), perplexity=(49.5, "lower"))
    assert "but slower (0.80× the speed of gpt2)" in verdict(FLOAT, slower)
    assert "but slower (0.80× the speed of gpt2)" in verdict(FLOAT, in_rounds(slower, 0))
    assert "but slower (0.80× the speed of gpt2)" in verdict(FLOAT, in_rounds(slower, 1))
    alike = "smaller, and its speed is that of gpt2 within noise (0.80×);"
    assert alike in verdict(FLOAT, in_rounds(slower, 2))
    both = record("int4", 98 * MIB, (0.8, 1.2), perplexity=(49.5, "lower"))
    assert "so slower in some" in verdict(FLOAT, in_rounds(both, 2, 5))
    noisy = in_rounds(both, 2, 3)
    assert "gpt2 within noise (0.80× to 1.2× over 2 shapes)" in verdict(FLOAT, noisy)
    found = study(FLOAT, noisy, replace(noisy, name="int3"))
    nearest = "none is faster (int4 comes nearest, 0.98× the speed on average, within noise)"
    assert nearest in overall_verdict(found)
    (_, speed, _) = figures(study(FLOAT, noisy), 1)
    assert speed.label == "the speed, within noise" and not speed.effect
