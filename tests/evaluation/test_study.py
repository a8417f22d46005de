import json
import math

import pytest

from lowbit import InputError
from lowbit.conversion.plan import Summary
from lowbit.conversion.recipe import Recipe
from lowbit.evaluation.sensitivity import Price, Sensitivity
from lowbit.evaluation.study import (
    Histogram,
    Measurement,
    Metric,
    ModelRecord,
    ModuleRecord,
    Sample,
    Study,
    Timing,
    structured,
)
from lowbit.search.outcome import Found, Trial
from lowbit.training.train import Outcome

MEASUREMENT = Measurement(
    task="perplexity",
    data="text.txt",
    items=10,
    unit="tokens",
    settings={"context": 64, "stride": None},
    metrics={"perplexity": Metric(math.inf, "lower"), "share": Metric(0.5, "higher", "a note")},
    samples=(Sample("in", "out", "wanted"),),
    predictions=("a", 1, 2.5),
)
RECORD = ModelRecord(
    name="int4",
    path="folder",
    architecture="GPT2LMHeadModel",
    recipe={"name": "int4", "rules": []},
    parameters=100,
    bits_per_weight=4.5,
    stored_bytes=57,
    disk_bytes=60,
    resident_bytes=58,
    resident_after_forward_bytes=59,
    peak_bytes=None,
    kernels=("avx2: best of what this processor has",),
    coverage=(Summary(True, "Linear: rule @linear", 3, 90, "layer.0"),),
    measurements=(MEASUREMENT,),
    timings=(Timing(8, 128, 0, 7, 2, 0.5, 0.1, 1.0), Timing(1, 4, 20, 7, 2, 0.5, 0.1)),
    modules=(
        ModuleRecord("layer.0", "4 bits", 90, 50, "avx2", "best", 0.01, Histogram(1.0, (1, 2), 3)),
    ),
)
STUDY = Study((RECORD,), {"torch": "2", "threads": 2}, 7, ("lowbit eval x",))


def test_a_study_comes_back_from_json_as_it_was():
    text = json.dumps(STUDY.to_dict(), allow_nan=False)
    assert Study.from_dict(json.loads(text)) == STUDY


def test_it_comes_back_from_a_file(tmp_path):
    file = tmp_path / "study.json"
    file.write_text(json.dumps(STUDY.to_dict()))
    assert Study.load(file) == STUDY


def test_what_is_not_a_number_stays_that():
    broken = structured(Metric, json.loads('{"value": "nan", "better": "lower", "note": ""}'))
    assert math.isnan(broken.value)


def test_a_study_without_later_fields_has_their_defaults():
    stored = json.loads(json.dumps(STUDY.to_dict()))
    for name in ("slow", "experts", "weights"):
        del stored["models"][0][name]
    record = Study.from_dict(stored).models[0]
    assert (record.slow, record.experts, record.weights) == ((), {}, None)


def test_an_unknown_field_and_a_wrong_type_are_refused_by_name():
    for change, sentence in (({"colour": 1}, "ModelRecord has no colour"),
                             ({"parameters": 1.5}, "ModelRecord.parameters is 1.5"),
                             ({"timings": [3]}, "ModelRecord.timings is 3")):  # fmt: skip
        stored = json.loads(json.dumps(STUDY.to_dict()))
        stored["models"][0].update(change)
        with pytest.raises(InputError, match=sentence):
            Study.from_dict(stored)


def test_throughput_counts_the_new_tokens_or_those_read():
    forward, generated = RECORD.timings
    assert forward.tokens_per_second == 8 * 128 / 0.5 and forward.speedup == 2
    assert generated.tokens_per_second == 20 / 0.5 and generated.speedup is None


def test_the_first_metric_decides():
    assert MEASUREMENT.main_metric == "perplexity"
    assert Measurement("generate", "", 0, "", {}, {}).main_metric is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "does not hold a study but a list"),
        ("{", "is not valid JSON"),
        ('{"schema": "other"}', "'other' version None, not 'lowbit-study' version 1"),
        ('{"schema": "lowbit-study", "version": 2}', "version 2, not 'lowbit-study' version 1"),
        ('{"schema": "lowbit-study", "version": 1}', "damaged: Study lacks models"),
        (
            '{"schema": "lowbit-study", "version": 1, "models": [{}], "environment": {},'
            ' "seed": 0, "commands": []}',
            "damaged: ModelRecord lacks name",
        ),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, text, sentence):
    file = tmp_path / "study.json"
    file.write_text(text)
    with pytest.raises(InputError, match=sentence):
        Study.load(file)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_whatever_is_told_as_json_is_json(value):
    metric = Metric(value, "lower")
    trial = Trial("way", Recipe((), "searched"), (), 1, 1.0, metric, value)
    measurement = Measurement("t", "d", 1, "rows", {}, {"m": metric}, predictions=(value,))
    for told in (
        Found(trial, (trial,), "t", "m", metric, 1),
        Sensitivity(value, (Price("kind", 1, 1, {"1": value}),)),
        Outcome(1, 1.0, {"float": measurement}, ()),
    ):
        text = json.dumps(told.to_dict(), allow_nan=False)
        assert str(value) in text
