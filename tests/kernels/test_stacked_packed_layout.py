"""Products and rows of a stacked weight: those of its parts side by side, on every target."""

import numpy as np
import pytest
import torch

from lowbit.formats import FORMATS, StaticScale, affine, binary
from lowbit.kernels import linear, native, ops
from lowbit.kernels.linear import KERNELS
from lowbit.kernels.linear.native import LinearProduct, in_place, together
from lowbit.kernels.selection import VARIABLE
from lowbit.kernels.stacked_packed_layout import packed_layout_of
from tests.kernels.test_packed_layout import assert_same
from tests.stored import STACKS, Form, values
from tests.targets import parameters, runnable

BEST = runnable(KERNELS["float"])[0]
STATIC = StaticScale(0.02, -40)
KINDS = {"float": None, "dynamic": None, "static": STATIC}
needs_native = pytest.mark.skipif(not native.available(), reason=native.reason() or "present")
every_stack = pytest.mark.parametrize("stack", STACKS, ids=str)


@pytest.fixture(params=parameters(KERNELS["float"]))
def target(request, monkeypatch):
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


def activations(rows, columns, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def numpy_weight(stack, rows, columns):
    return np.concatenate([values(part) for part in stack.parts(rows, columns)])


@every_stack
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 37])
def test_a_product_is_that_of_each_part_bit_for_bit(target, stack, kind, rows):
    x, bias = activations(rows, 200), activations(1, 50, 2)[0]
    parts, known = [part.q for part in stack.parts(50, 200)], KINDS[kind]
    q = stack.random(50, 200).q
    y = linear.linear(x, q, bias, kind, "gelu", known)
    biases = bias.split([part.shape[0] for part in parts])
    own = [
        linear.linear(x, part, b, kind, "gelu", known)
        for part, b in zip(parts, biases, strict=True)
    ]
    assert torch.equal(y, torch.cat(own, 1))
    assert linear.linear(x[:0], q, None, kind, "identity", known).shape == (0, 50)
    half = linear.linear(x.bfloat16(), q, bias, kind, "gelu", known)
    assert half.dtype == torch.bfloat16 and half.shape == (rows, 50)


@every_stack
def test_float_activations_are_within_twice_the_error_of_torch(target, stack):
    weight = numpy_weight(stack, 64, 192)
    x, bias = activations(9, 192), activations(1, 64, 2)[0]
    exact = x.double().numpy() @ weight.astype(np.float64).T + bias.double().numpy()
    torchs = torch.nn.functional.linear(x, torch.from_numpy(weight), bias).double().numpy()
    ours = linear.linear(x, stack.random(64, 192).q, bias, "float").double().numpy()
    assert (np.abs(ours - exact) <= 2 * np.abs(torchs - exact).max() + 1e-12).all()


@every_stack
def test_rows_of_a_table_are_those_of_numpy_and_no_others_are_decoded(stack, target, monkeypatch):
    q, wanted = stack.random(60, 96).q, torch.from_numpy(numpy_weight(stack, 60, 96))
    ids = torch.tensor([[59, 0, 19], [20, 20, 41]])
    decoded = []
    for module in (affine, binary):

        def counting(q, dtype, decode=module.decode):
            decoded.append(q.shape[0])
            return decode(q, dtype)

        monkeypatch.setattr(module, "decode", counting)
    assert torch.equal(ops.embedding(ids, q, torch.float32), wanted[ids])
    assert sum(decoded) == ids.numel()
    if target != "reference":
        form = packed_layout_of(q.layout, 60, 96)
        rows = ops.embedding_packed(ids, form.pack(q), form, torch.float32)
        assert torch.equal(rows, wanted[ids])


@needs_native
@every_stack
def test_a_packed_stack_comes_back_bit_for_bit(stack):
    q = stack.random(53, 192).q
    form = packed_layout_of(q.layout, 53, 192)
    packed = form.pack(q)
    assert_same(form.unpack(packed), q)
    assert all(start % 64 == 0 for _, start, _ in form.parts)
    # Whole panels of 16 rows in each part, and a cache line between them.
    alone = sum(part.layout.size for part in form.parts)
    assert alone <= len(packed) <= alone + 64 * len(form.parts)


@needs_native
@pytest.mark.parametrize("tokens", [1, 3])
def test_others_that_read_the_same_input_are_computed_in_the_same_call(tokens):
    stack = STACKS[1]
    x = activations(tokens, 96)
    weights, products = [], []
    for q in (stack.random(50, 96).q, Form("affine", 4, granularity_of(stack)).random(24, 96).q):
        form = packed_layout_of(q.layout, *q.shape)
        weights.append((form.pack(q), activations(1, q.shape[0], 3)[0]))
        products.append(LinearProduct(form, "dynamic", BEST))
    own = [run(x, *weight) for run, weight in zip(products, weights, strict=True)]
    assert all(map(torch.equal, together(products, x, weights), own))
    ys = [torch.full_like(y, torch.nan) for y in own]
    in_place(products, weights, ys)(x.data_ptr())
    assert all(map(torch.equal, ys, own))


def granularity_of(stack):
    return stack.forms[0].granularity


@needs_native
def test_the_planes_in_use_are_those_of_each_part():
    stack = STACKS[1]
    q, x = stack.random(48, 96).q, activations(3, 96)
    packed = packed_layout_of(q.layout, 48, 96).pack(q)
    for planes in (1, 2, 3):
        form = packed_layout_of(q.layout, 48, 96, planes)
        first = FORMATS["stacked"].prefix(q, planes)
        assert [part.bits for part in first.parts] == [min(planes, bits) for bits in (3, 2, 1)]
        y = LinearProduct(form, "dynamic", BEST)(x, packed, None)
        assert torch.equal(y, linear.linear(x, first, None, "dynamic"))
