"""Attention on every target against float64, within what rounding its operands and sums can do."""

import concurrent.futures
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.kernels import native, ops
from lowbit.kernels.attention import native as native_attention


@dataclass(frozen=True)
class Errs:
    """By how much, relative, of what is rounded: operands, exponentials and sums (of a few hundred
    terms)."""

    operands: float
    exponential: float
    sums: float


FLOAT32 = Errs(0.0, 2e-7, 2.0**-17)
BFLOAT16 = Errs(2.0**-8, 5e-5, 2.0**-20)  # and csrc/attention_amx.cpp
TARGETS = {target.name: FLOAT32 for target in native.targets("attention_float32")} | {
    target.name: BFLOAT16 for target in native.targets("attention_bfloat16")
}


FEATURES = native.targets("attention_float32") + native.targets("attention_bfloat16")
LACKING = {target.name: native.lacks(target.feature) for target in FEATURES}
pytestmark = pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, marks=pytest.mark.missing_target(why) if why else ())
        for target, why in LACKING.items()
    ],
)


def oracle(query, key, value, mask, scale, causal, errs, cap=None, sinks=None):
    """In float64: the result [batch, queries, heads, value size], and how far it may be off.

    A score errs by at most D = (2 operands + …) Σ |q k| scale, so a weight by a factor e^±D, and
    its quotient with the sum of all by e^±2D; rounding weights and values adds a factor each.
    """
    query, key, value = (t.double().numpy() for t in (query, key, value))
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat(shared, axis=1), value.repeat(shared, axis=1)
    scores = query @ key.swapaxes(-1, -2) * scale
    sizes = np.abs(query) @ np.abs(key).swapaxes(-1, -2) * scale
    if cap is not None:
        scores, sizes = cap * np.tanh(scores / cap), sizes + cap
    allowed = np.ones_like(scores, bool)
    if causal:
        allowed &= np.tri(*scores.shape[-2:], dtype=bool)
    if mask is not None and mask.dtype == torch.bool:
        allowed &= mask.numpy()
    elif mask is not None:
        added = mask.double().numpy()
        scores = scores + added
        sizes = sizes + np.where(np.isfinite(added), np.abs(added), 0) * errs.sums
    scores = np.where(allowed, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    sink = np.full((1, 1, 1), -np.inf) if sinks is None else sinks.double().numpy()[:, None, None]
    top = np.maximum(top, sink)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True) + np.exp(sink - np.where(np.isinf(top), 0, top))
    weights /= np.where(total == 0, 1, total)
    rounding = 2 * errs.operands + errs.operands**2 + errs.sums
    doubt = sizes.max(-1, keepdims=True, initial=0) * rounding
    factor = (
        np.exp(np.minimum(2 * doubt, 50))
        * (1 + errs.operands) ** 2
        * (1 + errs.exponential) ** 2
        * (1 + errs.sums)
        - 1
    )
    bound = factor * (weights @ np.abs(value)) + 1e-30
    return (weights @ value).swapaxes(1, 2), bound.swapaxes(1, 2)


def check(target, query, key, value, mask=None, causal=False, cap=None, sinks=None):
    scale = query.shape[-1] ** -0.5
    before = [t.clone() for t in (query, key, value)]
    y = ops.attention(query, key, value, mask, scale, causal, target, cap, sinks)
    assert y.dtype == torch.float32 and y.is_contiguous()
    for t, was in zip((query, key, value), before, strict=True):
        assert torch.equal(t, was)
    wanted, bound = oracle(query, key, value, mask, scale, causal, TARGETS[target], cap, sinks)
    assert y.shape == wanted.shape
    assert (np.abs(y.double().numpy() - wanted) <= bound).all()
    return y


def tokens(batch, heads, count, size, generator, padded=False):
    """[batch, heads, count, size] in the middle of what a product of all heads gives."""
    extra = 3 if padded else 0
    product = torch.randn(batch, count, heads * size + 2 * extra, generator=generator)
    own = product[..., extra : product.shape[-1] - extra]
    return own.unflatten(-1, (heads, size)).transpose(1, 2)


def poison():
    """Memory that the next results will find filled."""
    for size in (1 << 8, 1 << 12, 1 << 16, 1 << 20):
        torch.full((size,), torch.nan)


@settings(max_examples=12)
@given(data=st.data())
def test_every_shape_mask_and_stride_is_near_float64(target, data):
    draw = data.draw
    count = st.one_of(st.integers(1, 40), st.integers(1, 200), st.integers(250, 530))
    batch, key_heads, shared = draw(st.tuples(*[st.integers(1, 3)] * 3))
    queries, keys = draw(st.integers(1, 200)), draw(count)
    size, value_size = draw(st.integers(1, 128)), draw(st.integers(1, 128))
    heads = key_heads * shared
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    padded = draw(st.booleans())
    query = tokens(batch, heads, queries, size, generator, padded)
    key = tokens(batch, key_heads, keys, size, generator, padded)
    value = tokens(batch, key_heads, keys, value_size, generator, padded)
    wide = [draw(st.sampled_from([1, n])) for n in (batch, heads, queries)]
    kind = draw(st.sampled_from(["none", "boolean", "additive", "both", "one for all keys"]))
    mask = None
    if kind == "boolean":
        mask = torch.rand(*wide, keys, generator=generator) < draw(st.sampled_from([0.1, 0.8]))
    elif kind in ("additive", "both"):
        mask = torch.randn(*wide, keys, generator=generator) * 3
        if kind == "both":
            mask[torch.rand(mask.shape, generator=generator) < 0.5] = -torch.inf
    elif kind == "one for all keys":
        mask = torch.rand(*wide, 1, generator=generator) < 0.5
    cap, sinks = None, None
    if TARGETS[target] is FLOAT32:
        cap = draw(st.sampled_from([None, None, 0.5, 30.0]))
        sinks = draw(st.sampled_from([None, torch.randn(heads, generator=generator)]))
    poison()
    check(target, query, key, value, mask, draw(st.booleans()), cap, sinks)


def only_in_float32(target):
    if TARGETS[target] is not FLOAT32:
        pytest.skip("tiles take float32 alone, without caps and sinks")


@settings(max_examples=12)
@given(data=st.data())
def test_bfloat16_is_the_same_arithmetic_rounded_once(target, data):
    only_in_float32(target)
    draw = data.draw
    batch, key_heads, shared = draw(st.tuples(*[st.integers(1, 3)] * 3))
    queries = draw(st.one_of(st.integers(1, 7), st.integers(8, 140)))
    keys = draw(st.one_of(st.integers(1, 40), st.integers(250, 300)))
    size, value_size = draw(st.integers(1, 128)), draw(st.integers(1, 128))
    heads = key_heads * shared
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    padded = draw(st.booleans())
    query, key, value = (
        tokens(batch, n, count, each, generator, padded).bfloat16()
        for n, count, each in (
            (heads, queries, size),
            (key_heads, keys, size),
            (key_heads, keys, value_size),
        )
    )
    kind = draw(st.sampled_from([None, torch.bool, torch.float32, torch.bfloat16]))
    mask = None
    if kind is not None:
        mask = (torch.rand(batch, 1, queries, keys, generator=generator) * 3).to(kind)
    if kind in (torch.float32, torch.bfloat16):
        mask[torch.rand(mask.shape, generator=generator) < 0.3] = torch.finfo(kind).min
    cap = draw(st.sampled_from([None, 2.0]))
    sinks = draw(st.sampled_from([None, torch.randn(heads, generator=generator)]))
    how = size**-0.5, draw(st.booleans()), target, cap, sinks
    poison()
    y = ops.attention(query, key, value, mask, *how)
    wide = mask.float() if kind is torch.bfloat16 else mask
    wanted = ops.attention(query.float(), key.float(), value.float(), wide, *how)
    assert y.dtype is torch.bfloat16 and torch.equal(y, wanted.bfloat16())


@pytest.mark.parametrize("queries", [3, 70])
@pytest.mark.parametrize("width", [1, 5, 40])
@pytest.mark.parametrize("kind", ["boolean", "minus infinity", "least"])
def test_keys_outside_a_window_are_not_used(target, kind, width, queries):
    only_in_float32(target)
    generator = torch.Generator().manual_seed(0)
    keys = 300
    query = tokens(1, 2, queries, 24, generator)
    key, value = (tokens(1, 2, keys, 24, generator) for _ in range(2))
    last = torch.arange(keys - queries, keys)[:, None]
    behind = last - torch.arange(keys)
    mask = ((behind >= 0) & (behind < width))[None, None]
    if kind != "boolean":
        lowest = -torch.inf if kind == "minus infinity" else torch.finfo(torch.float32).min
        mask = torch.zeros(mask.shape).masked_fill(~mask, lowest)
    wanted = check(target, query, key, value, mask)
    first = keys - queries - width + 1
    spoilt = [t.clone() for t in (key, value)]
    for t in spoilt:
        t[:, :, :first] = torch.nan
    assert torch.equal(ops.attention(query, *spoilt, mask, 24**-0.5, False, target), wanted)
    if width == 1:  # each its own value
        assert torch.equal(wanted.transpose(1, 2), value[:, :, keys - queries :])


@pytest.mark.parametrize("queries", [3, 70])
def test_sinks_from_nothing_to_everything(target, queries):
    only_in_float32(target)
    generator = torch.Generator().manual_seed(0)
    query = tokens(1, 4, queries, 24, generator)
    key, value = (tokens(1, 4, 90, 24, generator) for _ in range(2))
    plain = ops.attention(query, key, value, None, 0.2, False, target)
    sinks = torch.tensor([-torch.inf, 1e30, torch.inf, torch.nan])
    y = ops.attention(query, key, value, None, 0.2, False, target, None, sinks)
    assert torch.equal(y[:, :, 0], plain[:, :, 0])
    assert (y[:, :, 1] == 0).all() and y[:, :, 2:].isnan().all()
    nothing = torch.zeros(1, 1, 1, 90, dtype=torch.bool)
    y = ops.attention(query, key, value, nothing, 0.2, False, target, None, torch.ones(4))
    assert (y == 0).all()


@pytest.mark.parametrize("queries", [3, 70])
def test_caps_from_tiny_to_huge(target, queries):
    only_in_float32(target)
    generator = torch.Generator().manual_seed(0)
    query = 50 * tokens(1, 2, queries, 24, generator)
    key, value = (tokens(1, 2, 90, 24, generator) for _ in range(2))
    for cap in (1e-30, 1e-3, 1.0, 50.0):
        check(target, query, key, value, cap=cap)
    mean = value.mean(2)[:, None].expand(1, queries, 2, 24)
    torch.testing.assert_close(check(target, query, key, value, cap=1e-30), mean)
    plain = check(target, query, key, value)
    huge = ops.attention(query, key, value, None, 24**-0.5, False, target, 1e30)
    torch.testing.assert_close(huge, plain, rtol=1e-4, atol=1e-5)
    query[..., 2, 3] = torch.nan
    y = ops.attention(query, key, value, None, 24**-0.5, False, target, 1.0)
    assert y[:, 2].isnan().all() and not y[:, :2].isnan().any()


@settings(max_examples=20)
@given(data=st.data())
def test_appending_to_held_keys_and_values_is_attention_to_all(target, data):
    draw = data.draw
    batch, key_heads, shared = draw(st.tuples(*[st.integers(1, 3)] * 3))
    held, new, spare = draw(st.integers(0, 300)), draw(st.integers(1, 5)), draw(st.integers(0, 9))
    size, value_size = draw(st.integers(1, 128)), draw(st.integers(1, 128))
    dtype = torch.float32
    if TARGETS[target] is FLOAT32:
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    query = tokens(batch, key_heads * shared, new, size, generator).to(dtype)
    mask = draw(st.sampled_from([None, torch.bool, torch.float32]))
    if mask is not None:
        wide = (1, 1, new, draw(st.sampled_from([1, held + new])))
        mask = (torch.rand(wide, generator=generator) * 3).to(mask)
    full, grown, more = [], [], []
    for each in (size, value_size):
        all_of_it = tokens(batch, key_heads, held + new, each, generator).to(dtype)
        full.append(all_of_it)
        more.append(all_of_it[:, :, held:])
        room = torch.full((batch, key_heads, held + new + spare, each), torch.nan, dtype=dtype)
        room[:, :, :held] = all_of_it[:, :, :held]
        grown.append(room)
    y = torch.full((batch, new, key_heads * shared, value_size), torch.nan, dtype=dtype)
    call = native_attention.appending(y, query, *more, size**-0.5, False, target)
    call(query.data_ptr(), *(t.data_ptr() for t in more), *grown, held, mask)
    for room, wanted in zip(grown, full, strict=True):
        assert torch.equal(room[:, :, : held + new], wanted)
        assert room[:, :, held + new :].isnan().all()
    assert torch.equal(y, ops.attention(query, *full, mask, size**-0.5, False, target))


@pytest.mark.parametrize("size", [64, 80, 256])
def test_one_attention_of_normal_operands_is_off_by_less_than_half_a_percent(target, size):
    generator = torch.Generator().manual_seed(0)
    operands = [tokens(2, 3, 128, size, generator) for _ in range(3)]
    y = check(target, *operands)
    wanted, _ = oracle(*operands, None, size**-0.5, False, TARGETS[target])
    assert np.linalg.norm(y.double().numpy() - wanted) <= 0.005 * np.linalg.norm(wanted)


def test_scores_from_tiny_to_enormous(target):
    """Large ones find the largest alone, in a later block of keys than the first too."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (tokens(1, 2, 300, 32, generator) for _ in range(3))
    for scale in (0.0, 1e-30, 1e-3, 30.0, 1e4):
        check(target, query * scale, key, value)
    key[:, :, -1] = query[:, :, 7] * 100
    wanted = value[:, :, -1].bfloat16().float() if TARGETS[target] is BFLOAT16 else value[:, :, -1]
    assert torch.equal(check(target, query, key, value)[:, 7], wanted)


def test_any_number_of_threads_and_of_heads_gives_the_same_bits(target):
    generator = torch.Generator().manual_seed(0)
    query = tokens(2, 12, 300, 64, generator)
    key, value = (tokens(2, 6, 300, 64, generator) for _ in range(2))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(ops.attention(query, key, value, None, 0.125, True, target))
    finally:
        torch.set_num_threads(threads)
    for y in results[1:]:
        assert torch.equal(y, results[0])
    alone = ops.attention(query[1:, 4:6], key[1:, 2:3], value[1:, 2:3], None, 0.125, True, target)
    assert torch.equal(alone, results[0][1:, :, 4:6])


def test_several_python_threads_call_at_once(target):
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        operands = [tokens(1, 4, 40 + seed, 48, generator) for _ in range(3)]
        for _ in range(5):
            check(target, *operands, causal=bool(seed % 2))
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))


def test_a_query_that_sees_no_key_gets_zeros_as_in_torch(target):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (tokens(1, 2, 70, 24, generator) for _ in range(3))
    boolean = torch.rand(1, 1, 70, 70, generator=generator) < 0.5
    boolean[..., 5, :] = False
    additive = torch.zeros(1, 1, 70, 70).masked_fill(~boolean, -torch.inf)
    least = torch.zeros(1, 1, 70, 70)
    least[..., 5, :] = torch.finfo(torch.float32).min  # all alike: the mean of the values
    for mask in (boolean, additive, least):
        y = check(target, query, key, value, mask)
        theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
        torch.testing.assert_close(y[:, 5], theirs[:, :, 5], rtol=0.005, atol=0.002)
        assert (y[:, 5] == 0).all() == (mask is not least)


def test_what_is_not_a_number_shows_where_it_is_seen(target):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (tokens(1, 2, 90, 40, generator) for _ in range(3))
    clean = ops.attention(query, key, value, None, 0.2, True, target)

    for bad in (torch.nan, torch.inf):
        spoilt = query.clone()
        spoilt[0, 1, 50, 3] = bad
        y = ops.attention(spoilt, key, value, None, 0.2, True, target)
        assert y[0, 50, 1].isnan().all()
        y[0, 50, 1] = clean[0, 50, 1]
        assert torch.equal(y, clean)

    spoilt = key.clone()
    spoilt[0, 1, 50, 3] = torch.nan
    y = ops.attention(query, spoilt, value, None, 0.2, True, target)
    assert y[0, 50:, 1].isnan().all()  # earlier queries do not see it
    assert torch.equal(y[0, :50, 1], clean[0, :50, 1]) and torch.equal(y[0, :, 0], clean[0, :, 0])

    spoilt = value.clone()
    spoilt[0, 1, 50, 3] = torch.nan
    y = ops.attention(query, key, spoilt, None, 0.2, True, target)
    assert y[0, 50:, 1, 3].isnan().all() and not y[0, :, 0].isnan().any()

    mask = torch.zeros(1, 1, 90, 90)
    mask[..., 7, 8] = torch.nan
    y = ops.attention(query, key, value, mask, 0.2, False, target)
    assert y[0, 7].isnan().all() and y.isnan().sum() == y[0, 7].numel()


@pytest.mark.parametrize(
    ("shape", "keys", "value_size"),
    [((0, 2, 20, 8), 20, 8), ((2, 2, 0, 8), 5, 8), ((1, 2, 20, 8), 5, 0)],
)
def test_nothing_gives_nothing(target, shape, keys, value_size):
    query = torch.zeros(shape)
    key, value = torch.zeros(*shape[:2], keys, 8), torch.zeros(*shape[:2], keys, value_size)
    y = ops.attention(query, key, value, None, 1.0, False, target)
    assert y.shape == (shape[0], shape[2], shape[1], value_size)


@pytest.mark.parametrize(("size", "keys"), [(8, 0), (0, 20)])
def test_no_keys_give_zeros_and_no_size_the_mean(target, size, keys):
    query, key = torch.randn(1, 2, 20, size), torch.randn(1, 2, keys, size)
    value = torch.randn(1, 2, keys, 5)
    y = ops.attention(query, key, value, None, 1.0, False, target)
    wanted = value.mean(2) if keys else torch.zeros(1, 2, 5)
    torch.testing.assert_close(y, wanted[:, None].expand_as(y), rtol=0.01, atol=0.01)


def test_values_that_do_not_lie_side_by_side_are_copied(target):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 24, 50, generator=generator).mT for _ in range(3))
    mask = (torch.rand(2, 1, 50, 50, generator=generator) < 0.5).mT
    check(target, query, key, value, mask)


def test_the_operator_tells_the_truth_about_itself(target):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (tokens(2, 4, 20, 16, generator) for _ in range(3))
    mask = torch.rand(2, 1, 1, 20, generator=generator) < 0.5
    call = query, key, value, mask, 0.25, False, target
    torch.library.opcheck(torch.ops.lowbit.attention.default, call)
    if TARGETS[target] is FLOAT32:
        torch.library.opcheck(torch.ops.lowbit.attention.default, (*call, 2.0, torch.randn(4)))
