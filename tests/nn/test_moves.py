"""A move that moves nothing keeps the packed weight; one that moves something stays right."""

import pickle
import threading

import pytest
import torch
from torch import nn

import lowbit
from lowbit.formats import CHANNEL, StaticScale, group
from lowbit.kernels import native, ops
from lowbit.nn import QuantLinear, QuantModule
from lowbit.schemes import Absmax, ZeroPoint
from tests.combinations import some
from tests.models import make, output

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")

NOTHING_MOVES = {
    "to the same device": lambda m: m.to("cpu"),
    "to the same device and dtype": lambda m: m.to("cpu", torch.float32),
    "to itself as accelerate does": lambda m: m.to(torch.device("cpu"), non_blocking=True),
    "cpu": lambda m: m.cpu(),
    "eval": lambda m: m.eval(),
    "train(False)": lambda m: m.train(False),
    "float": lambda m: nn.Module.float(m),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "share_memory": lambda m: m.share_memory(),
    "tie_weights": lambda m: m.tie_weights(),
}


def packed(model):
    return [m for m in model.modules() if isinstance(m, QuantModule) and m.tied_to is None]


@pytest.mark.parametrize(
    ("move", "recipe"), some(NOTHING_MOVES, ["int8-dynamic", "int4-all", "bcq2"])
)
def test_the_packed_weight_stays(move, recipe):
    model = make("bert")
    lowbit.quantize(model, recipe, progress=False)
    expected = output(model)
    before = [m.packed for m in packed(model)]
    assert before and all(weight is not None for weight in before)
    NOTHING_MOVES[move](model)
    assert all(m.packed is weight for m, weight in zip(packed(model), before, strict=True))
    assert torch.equal(output(model), expected)


def linear(scheme=None, kind="dynamic"):
    torch.manual_seed(0)
    q = (scheme or ZeroPoint(4, group(32))).quantize(torch.randn(24, 64))
    return QuantLinear(q.layout, 64, 24, nn.Parameter(torch.randn(24)), kind).hold(q), q


def test_a_change_of_dtype_keeps_it_and_the_stored_weight():
    layer, q = linear()
    x = torch.randn(3, 64)
    y, weight = layer(x), layer.packed
    half = layer.to(torch.bfloat16)(x.bfloat16())
    assert layer.packed is weight and half.dtype == torch.bfloat16
    assert layer.bias.dtype == torch.bfloat16
    assert ((half.float() - y).abs() <= 0.02 * y.abs().max()).all()
    for name, tensor in q.tensors().items():
        assert torch.equal(layer.state_dict()[name], tensor)


def test_a_shifted_bias_follows_a_change_of_dtype():
    layer, q = linear(Absmax(8, CHANNEL), "static")
    layer.eval().set_static(StaticScale(0.02, 5))
    x = torch.randn(3, 64)
    layer(x)
    layer.to(torch.bfloat16)
    fresh, _ = linear(Absmax(8, CHANNEL), "static")
    fresh.eval().set_static(StaticScale(0.02, 5))
    fresh.to(torch.bfloat16)
    assert torch.equal(layer(x), fresh(x))


def test_to_empty_gives_memory_that_loading_fills():
    layer, q = linear()
    x = torch.randn(3, 64)
    y = layer(x)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer(x)
    layer.to_empty(device="cpu")
    layer.load_state_dict(state)
    assert torch.equal(layer(x), y)


def test_a_move_to_meta_leaves_no_bytes():
    layer, _ = linear()
    layer(torch.randn(3, 64))
    layer.to("meta")
    assert layer.packed is None
    assert all(buffer.is_meta for buffer in layer.buffers())
    assert layer.weight.device.type == "meta"


def test_tensors_beside_the_weight_move_while_it_stays_packed():
    layer, _ = linear(Absmax(8, CHANNEL), "static")
    layer.eval().set_static(StaticScale(0.02, 5))
    layer(torch.randn(3, 64))
    layer.to(torch.float64)
    assert layer.packed is not None and layer.bias.dtype == torch.float64
    assert layer.input_scale.dtype == torch.float32 and layer.input_zero_point.dtype == torch.int8


def test_moving_while_another_thread_computes_changes_nothing():
    model = make("bert")
    lowbit.quantize(model, "int8-dynamic", progress=False)
    expected, same, moves = output(model), [], 0

    def compute():
        for _ in range(20):
            same.append(torch.equal(output(model), expected))

    thread = threading.Thread(target=compute)
    thread.start()
    while thread.is_alive():
        model.to("cpu")
        model.eval()
        moves += 1
    thread.join()
    assert same == [True] * 20 and moves > 0


def test_a_moved_layer_is_pickled_like_any_other():
    layer, q = linear()
    x = torch.randn(3, 64)
    y = layer.to("cpu")(x)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(x), y)
    assert torch.equal(ops.dequantize(again.stored_weight), ops.dequantize(q))


@pytest.mark.parametrize("change", ["in place", "storage", "replaced"])
@pytest.mark.parametrize("zero_point", [0, 5])
def test_a_bias_that_changes_is_used(zero_point, change):
    layer, _ = linear(Absmax(8, CHANNEL), "static")
    layer.eval().set_static(StaticScale(0.02, zero_point))
    x = torch.randn(3, 64)
    before, bias = layer(x), layer.bias
    with torch.no_grad():
        if change == "in place":
            bias.add_(8)
        elif change == "storage":
            bias.data = bias.data + 8
        else:
            layer.bias = nn.Parameter(bias + 8)
        assert torch.allclose(layer(x), before + 8, atol=1e-4)


@pytest.mark.parametrize("kind", ["float", "dynamic"])
def test_zero_points_that_are_no_codes_are_refused(kind):
    layer, _ = linear(ZeroPoint(4, group(32)), kind)
    state = layer.state_dict()
    layer.load_state_dict({**state, "zero_point": torch.full_like(state["zero_point"], 200)})
    with pytest.raises(lowbit.UsageError, match="holds 200, outside the codes 0 … 15"):
        layer(torch.randn(3, 64))
