"""bfloat16 activations: float32 results, rounded once, on every target."""

import pytest
import torch

from lowbit.formats import CHANNEL, group
from lowbit.kernels import native
from lowbit.kernels.linear.native import LinearProduct, in_place, kernels, together
from lowbit.kernels.stacked_packed_layout import packed_layout_of
from tests.combinations import some
from tests.stored import STACKS, Form
from tests.targets import parameters

NATIVE = kernels("float")
FORMS = [
    Form("affine", 8, CHANNEL),
    Form("affine", 4, group(64), shift=True),
    Form("binary", 2, group(32), shift=True),
    STACKS[0],
]
pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
KINDS = {"limbs": ("float", "limbs"), "fma": ("float", "fma"), "dynamic": ("dynamic", None)}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=parameters(NATIVE))
def target(request):
    return request.param


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def product_of(layout, kind, target, nonlinearity="identity"):
    activations, family = KINDS[kind]
    return LinearProduct(layout, activations, target, nonlinearity, family=family)


def same(a, b):
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize(
    ("form", "kind", "rows", "bias", "nonlinearity"),
    some(
        FORMS,
        KINDS,
        [1, 5, 70],
        [None, torch.float32, torch.bfloat16],
        ["identity", "gelu"],
        together=2,
    ),
    ids=str,
)
def test_the_result_is_that_of_float32_rounded_once(target, form, kind, rows, bias, nonlinearity):
    q = form.random(40, 96).q
    layout = packed_layout_of(q.layout, *q.shape)
    product, packed = product_of(layout, kind, target, nonlinearity), layout.pack(q)
    x = normal(rows, 96, seed=1)
    b = None if bias is None else normal(40, seed=2).to(bias)
    y = product(x, packed, b)
    assert y.dtype == torch.bfloat16
    assert same(y, product(x.float(), packed, None if b is None else b.float()).bfloat16())


@every_kind
def test_layers_together_give_the_bits_that_they_give_alone(target, kind):
    made = []
    for seed, form in enumerate(FORMS[:1] * 2):
        q = form.random(40 - seed * 7, 96, seed).q
        layout = packed_layout_of(q.layout, *q.shape)
        made.append((product_of(layout, kind, target), layout.pack(q), normal(40 - seed * 7)))
    x = normal(9, 96, seed=1)
    ys = together([p for p, _, _ in made], x, [(packed, b) for _, packed, b in made])
    for y, (product, packed, b) in zip(ys, made, strict=True):
        assert same(y, product(x, packed, b))
    written = [torch.empty_like(y) for y in ys]
    in_place([p for p, _, _ in made], [(packed, b) for _, packed, b in made], written)(x.data_ptr())
    assert all(same(a, b) for a, b in zip(written, ys, strict=True))


def test_what_is_not_finite_stays_visible_and_large_values_round_to_infinity(target):
    q = FORMS[0].random(40, 96).q
    layout = packed_layout_of(q.layout, *q.shape)
    product, packed = LinearProduct(layout, "dynamic", target), layout.pack(q)
    x = normal(4, 96)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    x[2] *= 1e38
    y = product(x, packed, None)
    assert y[:2].isnan().all() and y[3].isfinite().all()
    assert same(y[2:], product(x[2:].float(), packed, None).bfloat16())
    assert y[2].isinf().any()


def test_slices_of_other_strides_are_read_rightly(target):
    q = FORMS[0].random(40, 96).q
    layout = packed_layout_of(q.layout, *q.shape)
    product, packed = LinearProduct(layout, "dynamic", target), layout.pack(q)
    x = normal(8, 192)[::2, ::2]
    assert same(product(x, packed, None), product(x.contiguous(), packed, None))
