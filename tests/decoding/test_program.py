"""A recorded function gives the bits of the function itself."""

import pytest
import torch
from torch.nn import functional as F

from lowbit.decoding.cache import ROOM, GrowingLayer, Position, append
from lowbit.decoding.program import program
from lowbit.decoding.recording import Recording, recorded
from lowbit.errors import UsageError
from lowbit.formats import CHANNEL
from lowbit.kernels import layer_norm, native, ops
from lowbit.nn import QuantLinear
from lowbit.schemes import Absmax

ROWS, SIZE = 2, 12
WEIGHT = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))


def quantized(bias):
    q = Absmax(8, CHANNEL).quantize(torch.randn(SIZE, SIZE))
    return QuantLinear(q.layout, SIZE, SIZE, bias, "dynamic").hold(q).eval()


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(ROWS, 1, SIZE, generator=generator) for name in "xy"}


def recording(function, seed):
    given = inputs(seed)
    with torch.no_grad(), Recording() as seen:
        result = function(**given)
    return recorded(seen.calls, given, result)


def replayed(function):
    return program(recording(function, 1), recording(function, 2), [])


def views_and_arithmetic(x, y):
    heads = x.view(ROWS, 1, 3, 4).transpose(1, 2)
    first, second = (heads + y.view(ROWS, 1, 3, 4).transpose(1, 2)).split(2, dim=-1)
    joined = torch.cat([-second, first], dim=-1).transpose(1, 2).reshape(ROWS, 1, SIZE)
    return F.layer_norm(F.dropout(joined, 0.5, training=False), (SIZE,), WEIGHT)


def root_mean_square(x, y):
    return x.to(torch.float32) * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * WEIGHT


def normalized_sum(x, y):
    return F.layer_norm(x + y, (SIZE,), WEIGHT, WEIGHT, 1e-6) + y


def in_place(x, y):
    total = x + 1
    total += y
    total.mul_(2)
    total[:, 0, 1] = y[:, 0, 2]
    return total * WEIGHT


def what_is_not_needed(x, y):
    assert torch.ones(3).all()
    _ = y.exp() @ torch.ones(SIZE, 5)
    return torch.stack([x, x.float()]).sum(0)


def promoted(x, y):
    return (x > y) * x + 2 * y - (x - y)


def named_results(x, y):
    values, places = torch.topk(x, 3)
    return values + y.gather(-1, places).max(-1, keepdim=True).values


@pytest.mark.parametrize(
    "function",
    [
        views_and_arithmetic,
        root_mean_square,
        normalized_sum,
        in_place,
        what_is_not_needed,
        promoted,
        named_results,
    ],
)
def test_a_program_computes_what_the_function_does(function):
    step = replayed(function)
    for seed in range(3, 6):
        given = inputs(seed)
        assert torch.equal(step([], 0, **given), function(**given))


@pytest.mark.skipif(bool(native.lacks("avx2")), reason=native.lacks("avx2") or "present")
def test_a_layer_norm_between_sums_is_no_call_of_torch(monkeypatch):
    step, given = replayed(lambda x, y: normalized_sum(x + x, y)), inputs(7)
    if not layer_norm.has_torchs_bits(SIZE, 1e-6):
        pytest.skip("torch computes layer norms otherwise here")
    wanted = normalized_sum(given["x"] + given["x"], given["y"])
    monkeypatch.delattr(torch, "layer_norm")
    assert torch.equal(step([], 0, **given), wanted)


def test_a_position_is_asked_for_in_every_step():
    table, at = torch.arange(40.0), iter((4, 5))

    def function(x, y, position):
        return (x + y).select(-1, position) * table[position] + position

    step = replayed(lambda x, y: function(x, y, Position(next(at))))
    for position in range(6, 9):
        given = inputs(position)
        assert torch.equal(step([], position, **given), function(**given, position=position))


@pytest.mark.skipif(bool(native.lacks("scalar")), reason=native.lacks("scalar") or "present")
@pytest.mark.parametrize("read_elsewhere", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [(), (2.0, torch.tensor([0.5, -1.0, 2.0]))])
def test_a_cache_that_attention_reads_grows_with_every_step(read_elsewhere, more, dtype):
    def split(t):
        return t.view(ROWS, 1, 3, 4).transpose(1, 2)

    def function(layer, x, y):
        x, y = x.to(dtype), y.to(dtype)
        keys, values = append(layer, split(y * 2), split(y))
        seen = ops.attention(split(x), keys, values, None, 0.5, False, "scalar", *more)
        return seen + keys.sum() if read_elsewhere else seen

    layer, plain = GrowingLayer(), GrowingLayer()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, ROWS, 3, ROOM - 4, 4, generator=generator).to(dtype)
    for each in (layer, plain):
        each.extended(*start)
    recordings = []
    for seed in (1, 2):
        recordings.append(recording(lambda x, y: function(layer, x, y), seed))
        function(plain, **inputs(seed))
    step = program(*recordings, [layer])
    for seed in range(3, 9):
        given = inputs(seed)
        assert torch.equal(step([layer], seed, **given), function(plain, **given))
        assert layer.length == plain.length == ROOM - 4 + seed


def test_layers_of_the_same_input_and_of_others_give_their_own_bits():
    torch.manual_seed(0)
    layers = [quantized(torch.nn.Parameter(torch.randn(SIZE))), quantized(None), quantized(None)]

    @torch.no_grad()
    def function(x, y):
        ahead = layers[0](x) + layers[1](x)
        sideways = torch.softmax(ahead.view(ROWS, 3, 4), -1).transpose(0, 1).reshape(ROWS, 1, SIZE)
        return layers[2](sideways) + layers[1](y)

    step = replayed(function)
    for seed in range(3, 6):
        given = inputs(seed)
        assert torch.equal(step([], 0, **given), function(**given))


@pytest.mark.skipif(bool(native.lacks("scalar")), reason=native.lacks("scalar") or "present")
def test_a_layer_that_reads_all_tokens_so_far_gets_all_of_them():
    torch.manual_seed(0)
    project = quantized(None)

    @torch.no_grad()
    def function(layer, x, y):
        keys, _ = append(layer, x[:1, None], y[:1, None])
        return project(keys).sum(2) + x

    layer, plain = GrowingLayer(), GrowingLayer()
    for each in (layer, plain):
        each.extended(*torch.randn(2, 1, 1, 3, SIZE, generator=torch.Generator().manual_seed(0)))
    recordings = []
    for seed in (1, 2):
        recordings.append(recording(lambda x, y: function(layer, x, y), seed))
        function(plain, **inputs(seed))
    step = program(*recordings, [layer])
    for seed in range(3, 6):
        given = inputs(seed)
        assert torch.equal(step([layer], seed, **given), function(plain, **given))


def test_python_that_looks_at_values_is_refused():
    def function(x, y):
        return x if y.sum() > 0 else -x

    with pytest.raises(UsageError, match="reads values of tensors"):
        replayed(function)


def test_memory_that_outlives_a_step_is_refused():
    def function(x, y):
        kept = torch.zeros(ROWS, SIZE)
        kept[:, :3] = x[:, 0, :3]
        return kept + 1

    with pytest.raises(UsageError, match="memory that it keeps"):
        replayed(function)


def test_a_step_that_changes_is_refused():
    counts = iter((1, 2))
    with pytest.raises(UsageError, match="changes with the number of tokens"):
        replayed(lambda x, y: x + y * next(counts))
