"""Two-level scales and offsets on every target of native code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lowbit.formats import ExpertsTensor, decode
from lowbit.kernels import linear, native
from lowbit.kernels.linear import reference
from lowbit.kernels.linear.native import LinearProduct
from lowbit.kernels.packed_layout import PackedLayout
from lowbit.kernels.selection import VARIABLE
from lowbit.kernels.stacked_packed_layout import packed_layout_of
from tests.oracles import linear as oracle
from tests.stored import two_level, values
from tests.targets import parameters, runnable

TARGETS = runnable(native.targets("linear"))
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not native.available(), reason=native.reason() or "present"),
]

# bits, group, bits of small integers, signed. The last: scales times codes leave 24 bits.
KINDS = [
    pytest.param(2, 16, 4, False, id="q2_k"),
    pytest.param(3, 16, 6, True, id="q3_k"),
    pytest.param(4, 32, 6, False, id="q4_k"),
    pytest.param(5, 32, 6, False, id="q5_k"),
    pytest.param(6, 16, 8, True, id="q6_k"),
    pytest.param(7, 64, 8, False, id="7-bit"),
    pytest.param(8, 128, 8, True, id="8-bit"),
]
every_kind = pytest.mark.parametrize("bits, size, sub_bits, signed", KINDS)


def weight_of(bits, size, sub_bits, signed, rows=37, columns=768, seed=0):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    if bits == 8 and signed:  # plain int8 is stored as such
        stored = two_level(codes, bits, size, sub_bits, signed, seed)
        int8 = torch.from_numpy((codes ^ 0x80).view(np.int8))
        return replace(stored, q=replace(stored.q, codes=int8))
    return two_level(codes, bits, size, sub_bits, signed, seed)


def normal(rows, columns, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


@every_kind
def test_unpacking_gives_back_every_bit(bits, size, sub_bits, signed):
    q = weight_of(bits, size, sub_bits, signed).q
    form = PackedLayout(q.layout, *q.shape)
    again = form.unpack(form.pack(q))
    assert again.layout == q.layout
    for name, stored in q.tensors().items():
        assert torch.equal(again.tensors()[name], stored), name


@every_kind
@pytest.mark.parametrize("decoder", parameters(native.targets("decode_packed")))
def test_rows_decode_to_the_bits_of_numpy(bits, size, sub_bits, signed, decoder, monkeypatch):
    monkeypatch.setenv(VARIABLE, decoder)
    weight = weight_of(bits, size, sub_bits, signed)
    form = PackedLayout(weight.q.layout, *weight.q.shape)
    rows = torch.tensor([36, 0, 17, 36])
    wanted = torch.from_numpy(values(weight))
    assert torch.equal(decode(weight.q), wanted)
    assert torch.equal(form.decode(form.pack(weight.q), rows, torch.float32), wanted[rows])


@every_kind
def test_products_have_the_documented_bits_on_every_target(bits, size, sub_bits, signed):
    weight, x, bias = weight_of(bits, size, sub_bits, signed), normal(40, 768), normal(1, 37)[0]
    form = PackedLayout(weight.q.layout, *weight.q.shape)
    packed = form.pack(weight.q)
    args = weight.codes.astype(np.int64), weight.scale, weight.zero_point
    dynamic = reference.linear_dynamic(torch.from_numpy(x), weight.q, torch.from_numpy(bias))
    wanted = {
        ("float", "limbs"): oracle.float_affine(x, *args, bias, size, weight.offset),
        ("float", "fma"): oracle.float_fma(x, values(weight), bias, size),
        ("dynamic", None): dynamic.numpy(),
    }
    for target in TARGETS:
        for (activations, family), y in wanted.items():
            run = LinearProduct(form, activations, target, family=family)
            for rows in (1, 3, 9, 40):
                got = run(torch.from_numpy(x[:rows]), packed, torch.from_numpy(bias)).numpy()
                assert np.array_equal(got, y[:rows]), (target, activations, family, rows)


@every_kind
def test_products_are_close_to_float_ones(bits, size, sub_bits, signed):
    weight, x = weight_of(bits, size, sub_bits, signed), torch.from_numpy(normal(5, 768))
    wanted = x.double() @ torch.from_numpy(values(weight)).double().T
    got = linear.linear(x, weight.q, None, "float")
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


@every_kind
def test_experts_are_packed_one_after_the_other(bits, size, sub_bits, signed):
    parts = [weight_of(bits, size, sub_bits, signed, rows=20, seed=s) for s in (1, 2, 3)]
    q = ExpertsTensor.of(iter(part.q for part in parts), 3)
    form = packed_layout_of(q.layout, *q.shape)
    packed = form.pack(q)
    again = form.unpack(packed)
    assert all(torch.equal(again.tensors()[name], t) for name, t in q.tensors().items())
    wanted = np.concatenate([values(part) for part in parts])
    assert torch.equal(
        form.decode(packed, torch.arange(60), torch.float32), torch.from_numpy(wanted)
    )


def test_rows_that_are_no_whole_super_groups_never_reach_native_code():
    q = weight_of(4, 32, 6, False).q
    with pytest.raises(Exception, match="a multiple of 256 inputs, not of 300"):
        PackedLayout(q.layout, 4, 300).size  # noqa: B018
