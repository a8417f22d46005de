"""K-quants: what they store, and that their search finds good parameters."""

import math

import numpy as np
import pytest
import torch

from lowbit import Recipe, ZeroPoint
from lowbit.errors import InputError, UsageError
from lowbit.formats import decode, group
from lowbit.formats.error import WeightError
from lowbit.formats.validity import faults
from lowbit.schemes import KQuant, scheme_from_dict, scheme_to_dict

BITS = {2: 2.625, 3: 3.4375, 4: 4.5, 5: 5.5, 6: 6.5625}
# Of N(0, 1) in rows of 1,024: bounds of the mean squared error.
NORMAL = {2: 0.0745, 3: 0.0235, 4: 0.0058, 5: 0.00145, 6: 0.00035}


def normal(rows=32, columns=1024, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def effective(q):
    """Scale and offset of each weight as NumPy reads them, float64."""
    size, form = q.granularity.group_size, q.scale.form
    sub = np.unpackbits(q.scale.codes.numpy(), axis=1, bitorder="little")
    powers = 1 << np.arange(form.bits)
    c = (sub.reshape(len(sub), -1, form.bits) * powers).sum(-1) - (1 << form.bits - 1) * form.signed
    scale = np.repeat(q.scale.floats.numpy().astype(float), 256 // size, 1) * c
    offset = -scale * (1 << q.bits - 1)
    if q.offset is not None:
        sub = np.unpackbits(q.offset.codes.numpy(), axis=1, bitorder="little")
        m = (sub.reshape(len(sub), -1, form.bits) * powers).sum(-1)
        offset = np.repeat(q.offset.floats.numpy().astype(float), 256 // size, 1) * m
    return np.repeat(scale, size, 1), np.repeat(offset, size, 1)


@pytest.mark.parametrize("bits", BITS)
def test_they_take_the_bits_of_llama_cpps(bits):
    q = KQuant(bits).quantize(normal(3, 512))
    assert 8 * sum(t.nbytes for t in q.tensors().values()) == BITS[bits] * 3 * 512
    assert q.layout == KQuant(bits).layout(3)
    assert dict(faults(q.layout, q.tensors(), 512)) == {}


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_the_nearest_to_the_parameters_as_stored(bits):
    weight = normal(4, 512)
    q = KQuant(bits).quantize(weight)
    scale, offset = effective(q)
    every = scale[..., None] * np.arange(1 << bits) + offset[..., None]
    nearest = np.abs(every - weight.double().numpy()[..., None]).min(-1)
    got = np.abs(decode(q).double().numpy() - weight.double().numpy())
    assert np.allclose(got, nearest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_the_search_finds_grids_near_the_best_of_each_group(bits):
    weight = normal()
    error = WeightError.of(weight, KQuant(bits).quantize(weight)).mean_squared_error
    assert error < NORMAL[bits]


@pytest.mark.parametrize("bits, size", [(2, 32), (4, 32)])
def test_they_err_less_than_zero_points_of_more_bits(bits, size):
    weight = normal() * torch.exp(normal(32, 1, seed=1)) + 0.1
    ours, plain = (
        WeightError.of(weight, scheme.quantize(weight)).mean_squared_error
        for scheme in (KQuant(bits), ZeroPoint(bits, group(size)))
    )
    assert ours < 0.9 * plain


@pytest.mark.parametrize("bits", BITS)
def test_what_counts_more_errs_less(bits):
    weight = normal(16, 512)
    importance = torch.exp(2 * normal(1, 512, seed=3)[0])
    q, plain = KQuant(bits).fit(weight, importance), KQuant(bits).quantize(weight)
    error, other = (((decode(x) - weight).square() * importance).sum() for x in (q, plain))
    assert error < 0.97 * other


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(2, 256),
        torch.ones(2, 256),
        -torch.eye(16, 256),
        normal(2, 256) * 1e-30,
        normal(2, 256) * 1e-5,
        normal(2, 256) * 1e4,
        normal(2, 256).abs() + 3,
        torch.cat([normal(2, 256), torch.zeros(2, 256)], 1),
    ],
)
def test_odd_weights_are_stored_with_finite_numbers_and_zero_stays_zero(bits, weight):
    q = KQuant(bits).quantize(weight)
    assert dict(faults(q.layout, q.tensors(), weight.shape[1])) == {}
    back = decode(q)
    assert torch.isfinite(back).all() and (q.scale.float() != 0).all()
    assert not back[weight == 0].any() or bits == 2
    assert (back - weight).abs().max() <= weight.abs().max().clamp(min=1e-6)


def test_weights_beyond_float16_and_rows_of_no_super_groups_are_refused():
    with pytest.raises(InputError, match=r"a weight of 1e\+06 leaves two-level scales"):
        KQuant(4).quantize(torch.full((1, 256), 1e6))
    with pytest.raises(InputError, match="1 of 256 weights are NaN"):
        KQuant(4).quantize(torch.full((1, 256), 1.0).index_fill(1, torch.tensor([3]), math.nan))
    with pytest.raises(UsageError, match="a multiple of 256 inputs, not of 384"):
        KQuant(4).quantize(normal(2, 384))
    assert "not of 384" in KQuant(4).misfit(2, 384) and KQuant(4).misfit(2, 512) is None
    with pytest.raises(UsageError, match="k-quants have 2 … 6 bits, not 8"):
        KQuant(8)


def test_recipes_name_them():
    rule = {"match": "@linear", "scheme": "k-quant", "bits": 3}
    assert Recipe.from_dict({"rules": [rule]}).rules[0].scheme == KQuant(3)
    assert scheme_to_dict(KQuant(5)) == {"scheme": "k-quant", "bits": 5}
    with pytest.raises(UsageError, match="no option 'granularity'"):
        scheme_from_dict({"scheme": "k-quant", "granularity": "group:64"})


class TestFloatZeros:
    def test_the_offset_is_the_smallest_weight_and_all_codes_are_used(self):
        weight = normal(8, 128) + 5
        q = ZeroPoint(4, group(32), zero="float").quantize(weight)
        low = weight.unflatten(1, (4, 32)).amin(-1)
        assert torch.equal(q.offset, low.half()) and q.zero_point is None
        assert (decode(q) - weight).abs().max() <= 0.51 * q.scale.float().max()

    def test_it_is_written_only_where_it_is_asked_for(self):
        assert "zero" not in scheme_to_dict(ZeroPoint(4))
        assert scheme_to_dict(ZeroPoint(4, zero="float"))["zero"] == "float"
        with pytest.raises(UsageError, match="zero 'both' is unknown: use integer or float"):
            ZeroPoint(4, zero="both")

    def test_offsets_beyond_float16_make_all_float32(self):
        weight = normal(2, 64) + 1e5
        q = ZeroPoint(8, zero="float").quantize(weight)
        assert q.scale.dtype == q.offset.dtype == torch.float32
        assert (decode(q) - weight).abs().max() < 0.02
