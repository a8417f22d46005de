"""Which layers are said to be slower than in float32. Times are given: none is asserted."""

from dataclasses import replace

import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from lowbit.conversion.plan import make_plan
from lowbit.conversion.recipe import load_recipe
from lowbit.inspect import speed
from lowbit.inspect.speed import planned, present, slow_layers
from lowbit.kernels import native
from tests.models import make

needs_native = pytest.mark.skipif(not native.available(), reason="needs the native kernels")


@pytest.fixture
def timed(monkeypatch):
    """By a layer's layout and activations, how many times as long as float32 it takes."""
    given = {}

    def times(layer, copies, threads, kernel):
        assert kernel != "reference"
        return given[f"{layer.layout}, {layer.activations}"]

    monkeypatch.setattr(speed, "MATTERS", 1)
    monkeypatch.setattr(speed, "_times", times)
    return given


def computed(recipe, model="bert"):
    return planned(make_plan(make(model), load_recipe(recipe)))


def test_a_plan_and_the_model_that_it_makes_have_the_same_layers():
    import lowbit

    model = make("gpt2")
    expected = computed("int4-head8-dynamic", "gpt2")
    lowbit.quantize(model, "int4-head8-dynamic", progress=False)
    assert len(expected.layers) == 9 and expected.tables  # the tied head too
    assert sorted(map(str, present(model).layers)) == sorted(map(str, expected.layers))
    assert present(model).tables


@needs_native
def test_what_is_within_a_tenth_of_float32_is_not_spoken_of(timed):
    timed["affine 8-bit channel, dynamic"] = {1: 0.3, 256: 1.05}
    assert slow_layers(computed("int8-dynamic")) == ()


@needs_native
def test_slow_layers_are_told_with_the_faster_recipe_of_as_many_bits(timed):
    timed["binary 3-bit group:64, float"] = {1: 0.5, 256: 3.0}
    timed["affine 3-bit group:64, dynamic"] = {1: 0.2, 256: 0.75}
    (slow,) = slow_layers(computed("bcq3"))
    assert slow.faster == ("int3-dynamic", {1: 0.2, 256: 0.75})
    told = str(slow)
    assert "are slower than PyTorch's in float32 here" in told
    assert "0.50 times as long for 1 row and 3.00 times as long for 256 rows" in told
    assert "; stored as by int3-dynamic, it takes 0.20 times as long for 1 row and 0.75" in told


@needs_native
def test_where_tables_are_quantized_the_faster_recipe_quantizes_them_too(timed):
    timed["binary 3-bit group:64, float"] = {1: 0.5, 256: 3.0}
    timed["affine 3-bit group:64, dynamic"] = {1: 0.2, 256: 0.75}
    (slow,) = slow_layers(computed("bcq3-all"))
    assert slow.faster is not None and slow.faster[0] == "int3-all-dynamic"


@needs_native
def test_an_expert_is_a_layer(timed):
    import lowbit

    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    plan = make_plan(model, load_recipe("bcq3"))
    timed["binary 3-bit group:64, float"] = {1: 0.5, 256: 3.0}
    timed["affine 3-bit group:64, dynamic"] = {1: 0.2, 256: 0.75}
    (slow,) = slow_layers(planned(plan))
    assert slow.layers == 4 + 4 * 2  # attention; gate and up are one weight
    lowbit.quantize(model, "bcq3", progress=False)
    assert slow_layers(present(model)) == (slow,)
    assert "1 layer (affine" in str(replace(slow, layers=1, like=computed("int8").layers[0]))


@needs_native
def test_if_none_is_fast_the_least_slow_is_named_and_none_that_is_slower(timed):
    timed["binary 3-bit group:64, float"] = {1: 1.0, 256: 3.0}
    timed["affine 3-bit group:64, dynamic"] = {1: 1.5, 256: 1.5}
    timed["affine 4-bit group:64, dynamic"] = {1: 1.2, 256: 1.2}
    timed["affine 8-bit channel, dynamic"] = {1: 2.0, 256: 2.0}
    (slow,) = slow_layers(computed("bcq3"))
    assert slow.faster is not None and slow.faster[0] == "int4-dynamic"
    for fast in ("affine 3-bit group:64", "affine 4-bit group:64", "affine 8-bit channel"):
        timed[f"{fast}, dynamic"] = {1: 4.0, 256: 4.0}
    (slow,) = slow_layers(computed("bcq3"))
    assert slow.faster is None and str(slow).endswith("no recipe was faster.")


@needs_native
def test_layers_that_run_in_pytorch_are_slow_without_being_measured(timed, monkeypatch):
    monkeypatch.setenv("LOWBIT_KERNEL", "reference")
    (slow,) = slow_layers(computed("int8-dynamic"))
    assert slow.times is None and slow.faster is None
    assert "they run in PyTorch too (reference: forced by LOWBIT_KERNEL)" in str(slow)


@needs_native
def test_a_model_too_small_for_products_to_matter_is_not_measured(timed, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(speed, "_times", None)
    assert slow_layers(computed("bcq3")) == ()


@needs_native
def test_a_measurement_gives_a_finite_time_for_each_number_of_rows(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    for recipe in ("bcq3", "int8-dynamic", "int4-static"):
        layer = computed(recipe).layers[0]
        times = speed._times(layer, 2, 1, f"{recipe}, for the cache")
        assert set(times) == {1, 256} and all(0 < t < float("inf") for t in times.values())
