from types import SimpleNamespace

import pytest
import torch

from lowbit import UsageError
from lowbit.evaluation import latency
from lowbit.evaluation.latency import Shape, default_shapes, time_beside
from tests.models import make


@pytest.mark.parametrize(
    ("text", "shape"),
    [("1x128", Shape(1, 128)), ("8x16+32", Shape(8, 16, 32)), ("2x3+0", Shape(2, 3))],
)
def test_a_shape_is_batch_times_length_and_new_tokens(text, shape):
    assert Shape.parse(text) == shape


@pytest.mark.parametrize("text", ["", "1", "x", "1x", "1x2x3", "1x2+", "-1x2", "1.5x2", "a x b"])
def test_anything_else_is_no_shape(text):
    with pytest.raises(UsageError, match="is not like 8x128"):
        Shape.parse(text)


@pytest.mark.parametrize("text", ["0x5", "5x0"])
def test_a_shape_holds_a_token(text):
    with pytest.raises(UsageError, match="has no token"):
        Shape.parse(text)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("bert", Shape(1, 4, 2), "BertModel does not generate text, so 2 new tokens"),
        ("bert", Shape(1, 65), "65 tokens do not fit the model's 64 positions"),
        ("gpt2", Shape(1, 60, 5), "65 tokens do not fit the model's 64 positions"),
    ],
)
def test_a_shape_that_the_model_cannot_take_is_refused_before_timing(name, shape, sentence):
    with pytest.raises(UsageError, match=sentence):
        time_beside(make(name), None, [Shape(1, 4), shape])


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart", "llama-tied"])
def test_the_default_shapes_run_on_every_kind_of_model(name):
    model = make(name)
    timings = time_beside(model, None, default_shapes(model), rounds=1, progress=False)
    assert any(t.new_tokens for t in timings) == model.can_generate()
    assert all(t.seconds > 0 and t.speedup is None and t.rounds == 1 for t in timings)


def test_both_models_take_turns_and_the_first_round_does_not_count(monkeypatch):
    model, reference = make("bert", 0), make("bert", 1)
    turns, clock = [], iter(range(10_000))
    for which, m in (("model", model), ("reference", reference)):
        m.register_forward_pre_hook(lambda *_, which=which: turns.append(which))
    # Every look at the clock is one second later: a run takes one second.
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    [timing] = time_beside(model, reference, [Shape(2, 8)], rounds=3, progress=False)
    assert turns == ["model", "reference"] * 4
    assert (timing.seconds, timing.spread, timing.reference_seconds, timing.rounds) == (1, 0, 1, 3)
    assert timing.threads == torch.get_num_threads() and timing.tokens_per_second == 16


def test_exactly_the_tokens_asked_for_are_made_even_past_an_end(monkeypatch):
    model = make("gpt2")
    # Every token is the end of the text.
    model.transformer.wte.weight.data.zero_()
    model.generation_config.eos_token_id = 0
    generate, lengths = model.generate, []

    def spy(**options):
        tokens = generate(**options)
        lengths.append(tokens.shape[1])
        return tokens

    monkeypatch.setattr(model, "generate", spy)
    time_beside(model, None, [Shape(1, 5, 7)], rounds=2, progress=False)
    assert lengths == [12, 12, 12]


def test_time_is_the_median_and_spread_that_of_the_quartiles():
    timing = latency._timing(Shape(1, 1), [[5.0, 1.0, 2.0, 3.0, 100.0]])
    assert (timing.seconds, timing.spread) == (3, 3)
    assert timing.faster_in is None and not timing.within_noise


@pytest.mark.parametrize(
    ("own", "faster_in", "within_noise"),
    [([1, 2, 3], 3, False), ([2, 3, 4], 0, False), ([1, 9, 3], 2, True)],
)
def test_rounds_that_the_model_won_are_counted(own, faster_in, within_noise):
    timing = latency._timing(Shape(1, 1), [own, [2, 3, 4]])
    assert (timing.faster_in, timing.within_noise) == (faster_in, within_noise)


def test_the_model_is_left_in_the_mode_it_was_in():
    model = make("gpt2").train()
    time_beside(model, None, [Shape(1, 4), Shape(1, 4, 2)], rounds=1, progress=False)
    assert all(module.training for module in model.modules())
