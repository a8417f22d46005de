"""Offsets and two-level scales, against NumPy and the arithmetic of K-quants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import InputError, UsageError
from lowbit.formats import (
    CHANNEL,
    TENSOR,
    AffineLayout,
    AffineTensor,
    ExpertsTensor,
    TwoLevel,
    TwoLevelFloats,
    decode,
    decode_rows,
    group,
    layout_from_dict,
)
from lowbit.formats.affine import code_range, encode
from lowbit.formats.validity import faults
from tests.oracles import packing

# Of llama.cpp: bits of a code, size of a group, bits of a small integer, signed; bits per weight.
K_QUANTS = {
    "q2_k": (2, 16, 4, False, 2.625),
    "q3_k": (3, 16, 6, True, 3.4375),
    "q4_k": (4, 32, 6, False, 4.5),
    "q5_k": (5, 32, 6, False, 5.5),
    "q6_k": (6, 16, 8, True, 6.5625),
}


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def k_quant(kind, rows=5, supers=3, seed=0):
    """Such a weight of random numbers, and what the K-quant's own arithmetic makes of it."""
    bits, size, sub_bits, signed, _ = K_QUANTS[kind]
    rng = np.random.default_rng(seed)
    columns, groups = supers * 256, supers * 256 // size
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    d, dmin = rng.normal(0, 0.1, (2, rows, supers)).astype(np.float16)
    low = -(1 << sub_bits - 1) if signed else 0
    sc, m = rng.integers(low, low + (1 << sub_bits), (2, rows, groups))
    form = TwoLevel(sub_bits, signed)
    q = AffineTensor(
        tensor(packing.pack(codes, bits)),
        TwoLevelFloats(
            tensor(d), tensor(packing.pack((sc - low).astype(np.uint8), sub_bits)), groups, form
        ),
        None,
        bits,
        group(size),
        columns,
        None if signed else TwoLevelFloats.of(tensor(-dmin), tensor(m), form),
    )
    each, of = size, 256
    spread = lambda x, n: np.repeat(x.astype(np.float32), n, axis=1)  # noqa: E731
    scale = spread(d, of) * spread(sc, each)
    if signed:
        return q, scale * (codes.astype(np.float32) - np.float32(1 << bits - 1))
    return q, scale * codes.astype(np.float32) - spread(dmin, of) * spread(m, each)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_codes_of_k_quants_decode_to_their_bits(kind):
    q, wanted = k_quant(kind)
    assert torch.equal(decode(q), tensor(wanted))
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(decode_rows(q, rows), tensor(wanted)[rows])
    assert torch.equal(decode_rows(q, slice(1, 3)), tensor(wanted)[1:3])


@pytest.mark.parametrize("kind", K_QUANTS)
def test_they_take_the_bits_that_k_quants_take(kind):
    q, _ = k_quant(kind)
    assert 8 * sum(t.nbytes for t in q.tensors().values()) == K_QUANTS[kind][-1] * 5 * 768


@pytest.mark.parametrize("kind", K_QUANTS)
def test_layouts_survive_config_and_say_version_2(kind):
    q, _ = k_quant(kind)
    layout = layout_from_dict(q.layout.to_dict())
    assert layout == q.layout and layout.version == 2
    assert layout.names == tuple(q.tensors())
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in q.tensors().items()}
    assert layout.tensors(*q.shape) == shapes
    assert torch.equal(decode(layout.assemble(q.tensors(), q.in_features)), decode(q))


@pytest.mark.parametrize(
    "stored", [{}, {"bits": 4}, {"bits": "4", "signed": False}, {"bits": 4, "signed": 0}, [], None]
)
def test_levels_that_config_does_not_say_in_full_are_an_input_error(stored):
    layout = k_quant("q4_k")[0].layout.to_dict() | {"two_level": stored}
    with pytest.raises(InputError, match="a stored layout is not complete or valid"):
        layout_from_dict(layout)


@pytest.mark.parametrize("change", [{"signed_scale": True}, {"scale_dtype": torch.float32}])
def test_two_levels_have_float16_scales_of_any_sign_and_nothing_is_said_of_them(change):
    with pytest.raises(UsageError, match="two-level scales are float16 and need no signed_scale"):
        replace(k_quant("q4_k")[0].layout, **change)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_experts_hold_them(kind):
    one, other = (k_quant(kind, seed=seed)[0] for seed in (1, 2))
    q = ExpertsTensor.of(iter([one, other]), 2)
    assert torch.equal(decode(q), torch.cat([decode(one), decode(other)]))
    assert layout_from_dict(q.layout.to_dict()) == q.layout


@st.composite
def with_offsets(draw):
    """A weight with offsets, or scales of any sign, and the same as NumPy has it."""
    bits, offset = draw(st.integers(2, 8)), draw(st.booleans())
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    granularity = draw(st.sampled_from([TENSOR, CHANNEL]) | st.integers(2, 45).map(group))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    shape = granularity.parameter_shape(rows, columns)
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    scale, offsets = rng.normal(0, 1, (2, *shape)).astype(dtype)
    plain = bits == 8 and not offset
    q = AffineTensor(
        tensor((codes ^ 0x80).view(np.int8) if plain else packing.pack(codes, bits)),
        tensor(scale),
        None,
        bits,
        granularity,
        columns,
        tensor(offsets) if offset else None,
        signed_scale=True,
    )
    at = np.arange(columns) // granularity.width(columns)
    s, o = (
        np.broadcast_to(x, (rows, shape[1])).astype(np.float32)[:, at] for x in (scale, offsets)
    )
    if offset:
        return q, s * codes.astype(np.float32) + o
    return q, s * (codes.astype(np.float32) - np.float32(1 << bits - 1))


@given(with_offsets())
@settings(max_examples=40)
def test_offsets_are_added_in_float32(case):
    q, wanted = case
    assert torch.equal(decode(q), tensor(wanted))
    assert layout_from_dict(q.layout.to_dict()) == q.layout and q.layout.version == 2


@given(with_offsets())
@settings(max_examples=40)
def test_encoding_what_was_decoded_gives_the_same_weight(case):
    q, wanted = case
    lowest = None if q.offset is not None else -(1 << q.bits - 1)
    again = encode(
        decode(q), q.scale, None, q.bits, q.granularity, lowest, q.offset, q.signed_scale
    )
    assert again.layout == q.layout
    torch.testing.assert_close(decode(again), decode(q), rtol=1e-6, atol=0)


def test_the_range_of_codes_runs_from_the_offset_on():
    scale, offset = torch.tensor([[0.5], [-0.5]]), torch.tensor([[-2.0], [1.0]])
    q = encode(torch.zeros(2, 4), scale, None, 4, CHANNEL, None, offset, signed_scale=True)
    low, high = code_range(q)
    assert low.flatten().tolist() == [-2, -6.5] and high.flatten().tolist() == [5.5, 1]


def test_a_scale_of_zero_takes_the_code_of_zero():
    weight, d = torch.randn(1, 256), torch.ones(1, 1, dtype=torch.float16)
    form = TwoLevel(6, False)
    zeros = torch.zeros(1, 8, dtype=torch.int64)
    scale, offset = (TwoLevelFloats.of(d, zeros, form) for _ in range(2))
    q = encode(weight, scale, None, 4, group(32), offset=offset)
    assert not q.codes.any() and not decode(q).any()
    form = TwoLevel(6, True)
    q = encode(weight, TwoLevelFloats.of(d, zeros, form), None, 3, group(32), -4)
    assert not decode(q).any()


@pytest.mark.parametrize("columns", [1, 255, 257, 384])
def test_rows_that_are_no_whole_super_groups_are_refused(columns):
    layout = AffineLayout(4, group(32), False, two_level=TwoLevel(6, False), offset=True)
    with pytest.raises(InputError, match=f"a multiple of 256 inputs, not of {columns}"):
        layout.tensors(4, columns)


@pytest.mark.parametrize("granularity", [TENSOR, CHANNEL, group(24), group(512)])
def test_groups_that_do_not_divide_256_are_refused(granularity):
    with pytest.raises(UsageError, match=f"divides 256, not {granularity}"):
        AffineLayout(4, granularity, False, two_level=TwoLevel(6, False))


def test_zero_points_and_offsets_exclude_each_other():
    with pytest.raises(UsageError, match="not both"):
        AffineLayout(4, CHANNEL, True, offset=True)


@pytest.mark.parametrize("bits", [1, 9])
def test_small_integers_have_2_to_8_bits(bits):
    with pytest.raises(UsageError, match=f"{bits} bits are outside 2 … 8"):
        TwoLevel(bits, False)


@pytest.mark.parametrize("signed, found", [(False, 64), (False, -1), (True, 32), (True, -33)])
def test_a_small_integer_out_of_range_is_refused(signed, found):
    integers = torch.tensor([[0, found] * 4])
    with pytest.raises(InputError, match=f"sub-scale of {found} is outside"):
        TwoLevelFloats.of(torch.ones(1, 1).half(), integers, TwoLevel(6, signed))


GOOD = k_quant("q4_k")[0].layout.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"signed_scale": "yes"},
        {"two_level": 6},
        {"two_level": {"bits": 6}},
        {"two_level": {"bits": True, "signed": False}},
    ],
)
def test_a_stored_layout_that_is_not_one_is_an_input_error(change):
    with pytest.raises(InputError, match="not complete or valid"):
        layout_from_dict(GOOD | change)


@pytest.mark.parametrize("kind", K_QUANTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_floats_that_are_not_finite_are_faults(kind, value):
    q, _ = k_quant(kind)
    assert dict(faults(q.layout, q.tensors(), 768)) == {}
    for name, stored in q.tensors().items():
        if stored.is_floating_point():
            changed = stored.clone()
            changed[1, 1] = value
            assert list(dict(faults(q.layout, q.tensors() | {name: changed}, 768))) == [name]


def test_pad_bits_of_small_integers_are_zero():
    form = TwoLevel(6, True)
    ones = torch.ones(2, 1, dtype=torch.int64)
    q = encode(torch.randn(2, 256), TwoLevelFloats.of(ones.half(), ones, form), None, 4, group(256))
    assert dict(faults(q.layout, q.tensors(), 256)) == {}
    changed = q.scale.codes | 0x40
    assert list(dict(faults(q.layout, q.tensors() | {"sub_scale": changed}, 256))) == ["sub_scale"]


def test_what_needs_nothing_new_is_of_version_1():
    layout = AffineLayout(4, group(64), zero_point=True)
    assert layout.version == 1
    assert list(layout.to_dict()) == ["format", "bits", "granularity", "zero_point", "scale_dtype"]
    assert AffineLayout(4, CHANNEL, False, signed_scale=True).version == 2
