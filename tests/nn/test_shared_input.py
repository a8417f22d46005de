"""Layers that share an input never give what an older content of it was worth."""

import pytest
import torch

from lowbit.formats import CHANNEL
from lowbit.kernels import native
from lowbit.nn import QuantLinear, SharedInput
from lowbit.nn.shared_input import MOST_COPIED
from lowbit.schemes import Absmax

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
every_mode = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


def group_of(count, features=64):
    torch.manual_seed(0)
    layers = []
    for _ in range(count):
        q = Absmax(8, CHANNEL).quantize(torch.randn(32, features))
        layers.append(QuantLinear(q.layout, features, 32, None, "dynamic").hold(q))
    shared = SharedInput(tuple(layers))
    for layer in layers:
        layer.shared = shared
    return layers, shared


def alone(layer, x):
    shared, layer.shared = layer.shared, None
    try:
        return layer(x)
    finally:
        layer.shared = shared


@every_mode
def test_one_call_computes_all_and_each_gets_its_own(mode):
    (q, k, v), shared = group_of(3)
    with mode():
        x = torch.randn(5, 64)
        ys = [layer(x) for layer in (q, k, v)]
        assert shared._pending.x is None and shared.pays
        assert all(torch.equal(y, alone(f, x)) for y, f in zip(ys, (q, k, v), strict=True))


@every_mode
@pytest.mark.parametrize("part", [slice(None), (2, 3)])
def test_a_write_between_two_layers_is_seen(mode, part):
    (q, k, v), _ = group_of(3)
    with mode():
        x = torch.randn(5, 64)
        q(x)
        x[part] = 7.0
        assert torch.equal(k(x), alone(k, x))
        x[part] = -1.0
        assert torch.equal(v(x), alone(v, x))


@every_mode
def test_a_buffer_that_is_filled_again_is_seen(mode):
    (q, k), _ = group_of(2)
    with mode():
        x = torch.randn(5, 64)
        q(x)
        x.copy_(torch.randn(5, 64))
        assert torch.equal(k(x), alone(k, x))


@every_mode
@pytest.mark.parametrize("rows", [1, 1 << 12])
def test_a_change_of_shape_between_two_layers_is_seen(mode, rows):
    (q, k), _ = group_of(2)
    with mode():
        x = torch.randn(5, 64)
        q(x)
        x.resize_(rows, 64)[5:] = 0
        assert torch.equal(k(x), alone(k, x))


def test_two_groups_at_once_do_not_mix_up_their_copies():
    (q, k), _ = group_of(2)
    (gate, up), _ = group_of(2)
    with torch.inference_mode():
        x, other = torch.randn(5, 64), torch.randn(5, 64)
        q(x)
        gate(other)
        assert torch.equal(k(x), alone(k, x))
        assert torch.equal(up(other), alone(up, other))


def test_a_large_inference_tensor_is_not_copied():
    (q, k), shared = group_of(2, features=1024)
    with torch.inference_mode():
        x = torch.randn(MOST_COPIED // (4 * 1024) + 1, 1024)
        y = q(x)
        assert shared._pending.x is None
        assert torch.equal(k(x), alone(k, x)) and torch.equal(y, alone(q, x))


def test_an_input_with_nan_is_never_taken_for_another():
    (q, k), _ = group_of(2)
    with torch.inference_mode():
        x = torch.randn(5, 64)
        x[0, 0] = float("nan")
        q(x)
        assert torch.equal(k(x)[1:], alone(k, x)[1:]) and k(x)[0].isnan().all()
