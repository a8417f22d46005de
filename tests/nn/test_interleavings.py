"""Threads that compute a model see nothing of what another thread does with it."""

import pytest

from tests.nn.interleavings import RECIPES, faults, made


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_forward_pass_has_the_same_bits_whatever_another_thread_does(recipe):
    assert not faults(recipe, seed=0, count=8)


@pytest.mark.nightly
@pytest.mark.parametrize("recipe", RECIPES)
def test_many_interleavings_give_the_same_bits(recipe):
    assert not faults(recipe, seed=100, count=400)


def test_a_thread_that_meets_other_numbers_is_a_fault(monkeypatch):
    def spoil(model, *_):
        model.encoder.layer[0].output.dense.bias.data.add_(1)

    monkeypatch.setattr("tests.nn.interleavings.DEEDS", (spoil,))
    assert faults("int8-all-dynamic", seed=0, count=3)


def test_a_copy_is_of_one_moment():
    layer = made("int8-all-dynamic").encoder.layer[0].output.dense
    before = layer.__getstate__()
    assert layer.pack() is not None
    assert before["packed"] is None and not before["_buffers"]["codes"].is_meta
