"""Float activations by fused multiply-adds: csrc/linear_float.h on every target."""

import copy

import numpy as np
import pytest
import torch

from lowbit.errors import UsageError
from lowbit.formats import CHANNEL, group
from lowbit.kernels import linear, native
from lowbit.kernels.linear import families
from lowbit.kernels.linear.native import LinearProduct, together
from lowbit.kernels.packed_layout import PackedLayout
from tests.oracles import linear as oracle
from tests.stored import FORMS, Form
from tests.targets import parameters, runnable

TARGETS = runnable(native.targets("linear"))
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not native.available(), reason=native.reason() or "present"),
]


class Packed:
    def __init__(self, form, outputs, inputs, seed=0):
        weight = form.random(outputs, inputs, seed)
        zero = None if weight.binary else weight.zero_point
        self.width = weight.width
        self.weight = oracle.decoded(weight.codes, weight.scale, zero, weight.offset, weight.width)
        self.layout = PackedLayout(weight.q.layout, *weight.q.shape)
        self.bytes = self.layout.pack(weight.q)

    def product(self, target):
        return LinearProduct(self.layout, "float", target, family="fma")

    def times(self, x, target, bias=None):
        bias = None if bias is None else torch.from_numpy(bias)
        return self.product(target)(torch.from_numpy(x), self.bytes, bias).numpy()

    def by_oracle(self, x, bias=None):
        return oracle.float_fma(x, self.weight, bias, self.width)


def normal(rows, inputs, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, inputs), np.float32)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_results_are_those_of_the_documented_arithmetic(form):
    packed, x = Packed(form, 37, 330), normal(97, 330)
    bias = normal(1, 37, 1)[0]
    wanted = packed.by_oracle(x, bias)
    for rows in (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 33, 97):
        for target in TARGETS:
            assert np.array_equal(packed.times(x[:rows], target, bias), wanted[:rows]), (
                target,
                rows,
            )


@pytest.mark.parametrize(
    "form",
    [
        Form("affine", 8),
        Form("affine", 4, group(96), shift=True),
        Form("affine", 5, group(40), dtype=np.float32),
        Form("binary", 3, group(64), shift=True),
    ],
    ids=str,
)
def test_results_of_several_spans_are_those_of_the_documented_arithmetic(form):
    packed, x = Packed(form, 18, 2100), normal(20, 2100)
    wanted = packed.by_oracle(x)
    for rows in (1, 5, 20):
        for target in TARGETS:
            assert np.array_equal(packed.times(x[:rows], target), wanted[:rows]), (target, rows)


def test_results_of_several_chunks_are_those_of_the_documented_arithmetic():
    # Rows are arranged chunk by chunk, each in blocks of nearly equal size.
    packed, x = Packed(Form("affine", 4, group(24)), 18, 50), normal(1037, 50)
    wanted = packed.by_oracle(x)
    for target in TARGETS:
        assert np.array_equal(packed.times(x, target), wanted), target


@pytest.mark.parametrize("shapes", [60, pytest.param(600, marks=pytest.mark.nightly)])
def test_results_for_any_shape_and_form_are_those_of_the_documented_arithmetic(shapes):
    random = np.random.default_rng(shapes)
    for number in range(shapes):
        rows, outputs, inputs = (int(n) for n in random.integers(1, 120, 3))
        form = FORMS[random.integers(len(FORMS))]
        packed, x = Packed(form, outputs, inputs, number), normal(rows, inputs, number)
        x *= 10.0 ** random.uniform(-10, 10, (rows, 1)).astype(np.float32)
        wanted = packed.by_oracle(x)
        for target in TARGETS:
            got = packed.times(x, target)
            assert np.array_equal(got, wanted), (target, rows, outputs, inputs, str(form))


@pytest.mark.parametrize("target", parameters(native.targets("linear")))
@pytest.mark.parametrize(
    "form", [Form("affine", 4, group(64)), Form("binary", 2, group(64))], ids=str
)
def test_bits_depend_neither_on_other_rows_nor_on_other_layers(target, form):
    packed, x = Packed(form, 50, 1200), normal(300, 1200)
    # A companion with scales of float32 is read by other loops.
    single = Packed(Form("affine", 4, group(64), dtype=np.float32), 20, 1200)
    all_rows = packed.times(x, target)
    for first, last in ((0, 1), (7, 9), (20, 25), (200, 216), (17, 300)):
        part = np.ascontiguousarray(x[first:last])
        assert np.array_equal(packed.times(part, target), all_rows[first:last])
        products = [packed.product(target), single.product(target)]
        weights = [(packed.bytes, None), (single.bytes, None)]
        y, other = together(products, torch.from_numpy(part), weights)
        assert np.array_equal(y.numpy(), all_rows[first:last])
        assert np.array_equal(other.numpy(), single.times(part, target))


def test_the_variable_forces_a_family_and_an_unknown_one_is_refused(monkeypatch):
    layout = Packed(Form("affine", 8), 20, 40).layout
    for family in families.LIMBS:
        monkeypatch.setenv(families.VARIABLE, family)
        assert LinearProduct(layout, "float", "scalar").family == family
        _, why = linear.kernel(layout.layout, 40, torch.device("cpu"), "float")
        assert why.endswith(f"float activations by {family}")
    monkeypatch.setenv(families.VARIABLE, "bytes")
    with pytest.raises(UsageError, match=f"{families.VARIABLE} 'bytes' is unknown: use limbs"):
        LinearProduct(layout, "float", "scalar")


def test_each_path_prefers_one_family_and_int8_activations_have_none(monkeypatch):
    monkeypatch.delenv(families.VARIABLE, raising=False)
    layout = Packed(Form("affine", 8), 20, 40).layout
    assert families.family("float", "avx2") == "fma"
    assert families.family("float", "amx") == "limbs"
    assert families.family("dynamic", "avx2") is None
    assert LinearProduct(layout, "dynamic", "scalar").family is None


def test_a_copy_keeps_its_family():
    layout = Packed(Form("affine", 8, CHANNEL), 20, 40).layout
    for family in families.LIMBS:
        assert copy.copy(LinearProduct(layout, "float", "scalar", family=family)).family == family
