"""Model classes of every kind go through lowbit; nightly, all that transformers registers."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import lowbit
from tests.sweep import server, shares
from tests.sweep.classes import Registered, registered
from tests.sweep.oracle import difference, int4, int8
from tests.sweep.page import kind, text
from tests.sweep.walk import PROGRAMS, walk

DOCS = Path(__file__).parent.parent.parent / "docs"
CLASSES = {each.model_class: each for each in registered()}
KINDS = [
    "BertForMaskedLM",  # an encoder with a tied head
    "GPT2LMHeadModel",  # Conv1D, learned positions
    "GptOssForCausalLM",  # experts, transposed and with biases, attention sinks
    "NemotronHForCausalLM",  # experts without a gate
    "Gemma2ForCausalLM",  # soft caps, sliding windows
    "FalconForCausalLM",  # a linear layer of its own
    "MambaForCausalLM",  # recurrent, reads its layers' weights
    "T5ForConditionalGeneration",  # relative positions, encoder and decoder
    "CLIPModel",  # two towers
    "ViTForImageClassification",  # images
    "Wav2Vec2ForXVector",  # sounds, weights used as convolutions
    "ResNetForImageClassification",  # nothing but convolutions and a head
    "OlmoForCausalLM",  # norms without weights
]


def faults(outcomes: dict[str, str]) -> dict[str, str]:
    return {step: o for step, o in outcomes.items() if kind(o) in ("FAIL", "ERR")}


@pytest.mark.parametrize("name", KINDS)
def test_a_class_of_each_kind_is_right_at_every_step(name):
    outcomes = dict(walk(CLASSES[name]))
    assert outcomes["float"] == "ok" and not faults(outcomes)
    assert "running" not in outcomes.values()


@pytest.mark.nightly
@pytest.mark.timeout(3 * 60 * 60)
def test_no_registered_class_gives_a_wrong_result_or_a_raw_exception():
    server.prepare()
    rows = list(server.rows(registered()))
    assert {row["class"]: faults(row["steps"]) for row in rows if faults(row["steps"])} == {}
    assert sum(row["steps"]["float"] == "ok" for row in rows) > 0.8 * len(rows)


@pytest.mark.nightly
@pytest.mark.timeout(3 * 60 * 60)
def test_no_registered_class_gives_a_wrong_result_as_a_program():
    server.prepare()
    rows = list(server.rows(registered(), PROGRAMS))
    assert {row["class"]: faults(row["steps"]) for row in rows if faults(row["steps"])} == {}
    served = sum(row["steps"].get("compiled", "").startswith("ok") for row in rows)
    assert served > 150


def test_a_mixture_is_nearly_all_quantized_at_its_real_size():
    plan = shares.plan_of(CLASSES["MixtralForCausalLM"])
    assert plan.parameters > 46e9 and plan.share > 0.99


@pytest.mark.nightly
def test_every_mixture_that_describes_itself_is_nearly_all_quantized():
    found = [share for share in shares.shares() if not isinstance(share, str)]
    assert len(found) > 90
    assert {share.model_class: share.kept for share in found if not share.share > 0.95} == {}


def test_a_weight_off_by_a_tenth_is_called_wrong(monkeypatch):
    quantize = lowbit.quantize

    def off(model, recipe, **options):
        result = quantize(model, recipe, **options)
        model.classifier.bias.data *= 1.1
        return result

    monkeypatch.setattr(lowbit, "quantize", off)
    steps = ("float", "int8", "reload", "stream", "dequantize")
    outcomes = dict(walk(CLASSES["BertForTokenClassification"], steps))
    assert set(faults(outcomes)) == {"int8", "stream", "dequantize"}


def test_an_exception_and_a_refusal_are_told_apart(monkeypatch):
    def refuse(*_, **__):
        raise lowbit.UsageError("no such recipe")

    monkeypatch.setattr(lowbit, "quantize", refuse)
    outcomes = dict(walk(CLASSES["BertModel"], ("float", "int8")))
    assert outcomes["int8"] == "refused: no such recipe"

    def fail(*_, **__):
        raise KeyError("weight")

    monkeypatch.setattr(lowbit, "quantize", fail)
    outcomes = dict(walk(CLASSES["BertModel"], ("float", "int8")))
    assert outcomes["int8"].startswith("ERR: KeyError: 'weight' [")


def test_a_crash_and_an_endless_step_cost_one_row(monkeypatch):
    def steps(what, _):
        yield "float", "ok"
        yield "int8", "running"
        if what.model_class == "Crashing":
            os.kill(os.getpid(), signal.SIGKILL)
        if what.model_class == "Endless":
            time.sleep(60)
        yield "int8", "ok"

    monkeypatch.setattr(server, "walk", steps)
    todo = [Registered(name, "none", "none") for name in ("Crashing", "Endless", "Good")]
    found = [row["steps"]["int8"] for row in server.rows(todo, (), limit=0.5)]
    assert found == ["ERR: killed by signal 9", "ERR: over 0.5 s", "ok"]


def test_the_oracle_rounds_to_the_levels_of_the_schemes():
    w = np.array([[0.5, -1.27, 0.0, 0.3] * 16], np.float32)
    codes = int8(w) / np.float32(np.float16(0.01))
    assert np.rint(codes)[0, :4].tolist() == [50, -127, 0, 30]
    ramp = np.linspace(-1, 0.875, 16, dtype=np.float32).repeat(4)[None]
    assert np.array_equal(int4(ramp), ramp)
    longer = np.hstack([ramp, 2 * ramp[:, ::2]])
    assert np.array_equal(int4(longer), longer)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_differs_from_any_that_is(value):
    good = {"out": torch.ones(3)}
    got = {"out": torch.tensor([1.0, value, 1.0])}
    assert not difference(got, good) <= 1
    assert not difference(good, got) <= 1
    assert not difference({}, good) <= 1


def test_every_class_of_the_page_is_registered_once():
    stored = json.loads((DOCS / "models.json").read_text())
    names = [row["class"] for row in stored["classes"]]
    assert len(names) == len(set(names)) > 1000


def test_the_page_is_the_one_of_its_data():
    stored = json.loads((DOCS / "models.json").read_text())
    assert (DOCS / "models.md").read_text() == text(stored)
