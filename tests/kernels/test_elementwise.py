"""Native elementwise operations give torch's bits, whatever the shapes and steps of operands."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.kernels import elementwise, native
from lowbit.kernels.sequence import sequence

pytestmark = pytest.mark.skipif(
    bool(native.lacks("scalar")), reason=native.lacks("scalar") or "present"
)
SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3e38, -1.0])


def numbers(shape, seed, special=True):
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(shape, generator=generator) * 10.0 ** float(seed % 7 - 3)
    if special and t.numel():
        at = torch.randint(t.numel(), (3,), generator=generator)
        t.view(-1)[at] = SPECIAL[torch.randint(len(SPECIAL), (3,), generator=generator)]
    return t


@st.composite
def operands(draw, shape):
    """Of that shape, or broadcast to it; steps as a transposed view or a slice has them."""
    own = [draw(st.sampled_from([n, n, 1])) for n in shape]
    order = draw(st.permutations(range(len(own))))
    t = numbers([2 * own[i] for i in order], draw(st.integers(0, 10**6)))
    for i in range(len(own)):
        t = t.narrow(i, draw(st.integers(0, t.shape[i] // 2)), t.shape[i] // 2)
    t = t.permute([order.index(i) for i in range(len(own))])
    return t[(0,) * draw(st.integers(0, sum(n == 1 for n in own[:1])))]


def run(function, args, wanted):
    y = torch.full_like(wanted, 7.0, memory_format=torch.contiguous_format)
    made = elementwise.operations(function, args, {}, y)
    assert made
    sequence(made)()
    # NumPy takes NaN for NaN and tells 0 from -0 by the sign.
    np.testing.assert_array_equal(y.numpy(), wanted.numpy())
    real = ~wanted.isnan()
    assert torch.equal(y.signbit()[real], wanted.signbit()[real])


@settings(max_examples=60)
@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_arithmetic_has_torchs_bits(data, shape):
    a = data.draw(operands(shape))
    b = data.draw(st.one_of(operands(shape), st.sampled_from([1e-6, 2, -0.1])))
    for function in (torch.add, torch.mul):
        run(function, (a, b), function(a, b))
    run(torch.pow, (a, 2), a.pow(2))
    for function in (torch.neg, torch.rsqrt):
        run(function, (a,), function(a))


@settings(max_examples=30)
@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_joined_tensors_are_copied(data, shape):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for size in data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):
        own = list(shape)
        own[dim] = size
        parts.append(numbers(own, size))
    run(torch.cat, (parts, dim), torch.cat(parts, dim))
    y = torch.empty_like(torch.cat(parts, dim))
    sequence(elementwise.operations(torch.cat, (parts,), {"dim": dim}, y))()
    np.testing.assert_array_equal(y.numpy(), torch.cat(parts, dim).numpy())


def test_operations_follow_each_other():
    x, y, z = torch.randn(3, 1, 40), torch.empty(3, 2, 40), torch.empty(3, 2, 40)
    first = elementwise.operations(torch.add, (x, torch.ones(2, 1)), {}, y)
    second = elementwise.operations(torch.mul, (y, y), {}, z)
    call = sequence([*first, *second])
    for _ in range(2):
        x.normal_()
        call()
        assert torch.equal(z, (x + torch.ones(2, 1)).square())


def test_what_is_not_served_is_left_to_torch():
    x = torch.randn(4, 4)
    for function, args, y in (
        (torch.add, (x.double(), x.double()), x.double()),
        (torch.add, (x, torch.arange(4)), x.clone()),
        (torch.pow, (x, 3), x.clone()),
        (torch.pow, (x, torch.full((4,), 2.0)), x.clone()),
        (torch.pow, (2, x), x.clone()),
        (torch.tanh, (x,), x.clone()),
        (torch.add, (torch.randn(40_000), 1.0), torch.empty(40_000)),
        (
            torch.neg,
            (torch.randn([2] * 10).permute(*range(0, 10, 2), *range(1, 10, 2)),),
            torch.empty([2] * 10),
        ),
    ):
        assert elementwise.operations(function, args, {}, y) == []
    assert elementwise.operations(torch.add, (x, x), {"alpha": 2}, x.clone()) == []
    assert elementwise.operations(torch.cat, ([x, x],), {"axis": 1}, torch.empty(4, 8)) == []
    # A tensor [0] beside others is torch's way to say nothing.
    assert elementwise.operations(torch.cat, ([torch.empty(0), x],), {}, x.clone()) == []
