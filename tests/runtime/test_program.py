"""Native programs: operations against NumPy in float64, and what Python may not hand over."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.kernels import native
from tests.targets import parameters, runnable

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason())

TARGETS = runnable(native.targets("normalize_rows"))


def run(program, rows, inputs, results, starts=None, ids=(), biases=(), length=0, operations=1):
    starts = torch.tensor([0, rows] if starts is None else starts)
    places = torch.cat([torch.arange(int(n)) for n in starts.diff()])
    arena = torch.empty(program.arena_bytes(rows), dtype=torch.uint8)
    made = [torch.full((rows, columns), torch.nan) for columns in results]
    addresses = [[t.data_ptr() for t in each] for each in (ids, inputs, made, biases)]
    program.run(
        rows, len(starts) - 1, starts.data_ptr(), places.data_ptr(), *addresses, length,
        arena.data_ptr(), 0, operations,
    )  # fmt: skip
    return made


def normalized(target, x, residual, weight, bias, epsilon, centered):
    rows, columns = x.shape
    program = native.module.Program()
    numbers = [program.input(columns), program.input(columns)]
    total, y = program.result(columns), program.result(columns)
    program.normalize(
        target, columns, weight.data_ptr(), bias.data_ptr(), epsilon, centered, *numbers, total, y
    )
    return run(program, rows, [x, residual], [columns, columns])


@given(st.integers(0, 9), st.integers(1, 70), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_norms_err_little_and_alike(rows, columns, centered, seed):
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(rows, columns, generator=generator) * 3 + 1 for _ in range(2))
    weight, bias = (torch.randn(columns, generator=generator) for _ in range(2))
    s = x.double().numpy() + residual.double().numpy()
    d = s - s.mean(1, keepdims=True) if centered else s
    deviation = np.sqrt((d**2).mean(1, keepdims=True) + 1e-5)
    wanted = d / deviation * weight.double().numpy() + bias.double().numpy()
    # A mean of equal size errs by 2^-24 of it, which the deviation divides.
    bound = 2e-6 * (1 + np.abs(s).max(initial=0) / deviation) * (1 + np.abs(weight.numpy()))
    seen = set()
    for target in TARGETS:
        total, y = normalized(target, x, residual, weight, bias, 1e-5, centered)
        assert torch.equal(total, x + residual)
        assert (np.abs(y.double().numpy() - wanted) <= bound).all()
        seen.add(y.numpy().tobytes())
    assert len(seen) == 1


def attended(target, q, k, v, heads, starts, causal=False, window=0, bias=None):
    program = native.module.Program()
    numbers = [program.input(t.shape[1]) for t in (q, k, v)]
    size, value_size = q.shape[1] // heads, v.shape[1] // heads
    y = program.result(v.shape[1])
    sizes = [heads, heads, size, value_size]
    biased = -1 if bias is None else 0
    operands = [[m, 0] for m in numbers]
    program.attention(target, sizes, size**-0.5, causal, window, *operands, biased, y)
    biases = [] if bias is None else [bias]
    length = 0 if bias is None else bias.shape[-1]
    (made,) = run(program, len(q), [q, k, v], [v.shape[1]], starts, (), biases, length)
    return made


def attention_in_float64(q, k, v, heads, starts, causal, window, bias):
    q, k, v = (t.double().numpy().reshape(len(t), heads, -1) for t in (q, k, v))
    y = np.zeros((len(q), heads, v.shape[2]))
    there = [(a, b) for a, b in zip(starts, starts[1:], strict=False) if a < b]
    for first, last in there:
        for h in range(heads):
            scores = q[first:last, h] @ k[first:last, h].T * q.shape[2] ** -0.5
            n = last - first
            if bias is not None:
                scores += bias.double().numpy()[h, :n, :n]
            distance = np.arange(n)[:, None] - np.arange(n)
            scores[(distance < 0) & causal] = -np.inf
            scores[(np.abs(distance) > window) & (window > 0)] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            y[first:last, h] = weights / weights.sum(1, keepdims=True) @ v[first:last, h]
    return y.reshape(len(q), -1)


@given(
    st.lists(st.integers(0, 45), min_size=1, max_size=4).filter(any),
    st.sampled_from([1, 7, 16, 24]),
    st.booleans(),
    st.sampled_from([0, 1, 9]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_attention_errs_little_and_alike(lengths, size, causal, window, biased, seed):
    generator = torch.Generator().manual_seed(seed)
    starts = np.cumsum([0, *lengths]).tolist()
    q, k, v = (torch.randn(starts[-1], 2 * size, generator=generator) for _ in range(3))
    longest = max(lengths)
    bias = torch.randn(2, longest, longest, generator=generator) if biased else None
    wanted = attention_in_float64(q, k, v, 2, starts, causal, window, bias)
    seen = set()
    for target in TARGETS:
        y = attended(target, q, k, v, 2, starts, causal, window, bias)
        assert (np.abs(y.double().numpy() - wanted) <= 3e-6 * np.abs(v.numpy()).max()).all()
        seen.add(y.numpy().tobytes())
    assert len(seen) == 1


@given(st.integers(0, 9), st.integers(1, 3), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_rotations_are_those_of_the_definition(rows, heads, half, seed):
    generator = torch.Generator().manual_seed(seed)
    size, wide = 2 * half, 2 * half * heads + 3
    x, cos, sin = (torch.randn(rows, n, generator=generator) for n in (wide, size, size))
    program = native.module.Program()
    numbers = [program.input(n) for n in (wide, size, size)]
    y = program.result(heads * size)
    program.rotate([numbers[0], 3], heads, size, *numbers[1:], y)
    (made,) = run(program, rows, [x, cos, sin], [heads * size])
    each = x[:, 3:].reshape(rows, heads, size).numpy()
    swapped = np.concatenate([-each[..., half:], each[..., :half]], -1)
    wanted = each * cos.numpy()[:, None] + swapped * sin.numpy()[:, None]
    assert np.array_equal(made.numpy(), wanted.reshape(rows, heads * size))


@given(
    st.integers(0, 9),
    st.integers(1, 150),
    st.sampled_from(["gelu", "silu", "relu"]),
    st.sampled_from(["one matrix", "two", "alone"]),
)
@settings(max_examples=40, deadline=None)
def test_gates_err_little_and_alike(rows, columns, name, gate):
    x = torch.randn(rows, 2 * columns + 1, generator=torch.Generator().manual_seed(columns)) * 3
    a, b = x[:, 1 : columns + 1].double(), x[:, columns + 1 :].double()
    if gate == "alone":
        b = torch.ones_like(b)
    wanted = getattr(torch.nn.functional, name)(a) * b
    seen = set()
    for target in TARGETS:
        program = native.module.Program()
        number, y = program.input(x.shape[1]), program.result(columns)
        kind = getattr(native.module.Nonlinearity, name)
        other, inputs = [number, columns + 1], [x]
        if gate == "alone":
            other = [-1, 0]
        elif gate == "two":
            other, inputs = [program.input(columns), 0], [x, x[:, columns + 1 :].contiguous()]
        program.gate(kind, target, [number, 1], other, y)
        (made,) = run(program, rows, inputs, [columns])
        assert ((made - wanted).abs() <= 5e-7 * a.abs().clamp(min=1) * b.abs().clamp(min=1)).all()
        seen.add(made.numpy().tobytes())
    assert len(seen) == 1


def test_heads_that_share_keys_and_long_sequences_err_little():
    generator = torch.Generator().manual_seed(7)
    heads, key_heads, size, starts = 4, 2, 16, [0, 300, 301, 700]
    q = torch.randn(700, heads * size, generator=generator)
    k, v = (torch.randn(700, key_heads * size, generator=generator) for _ in range(2))

    def repeated(t):
        return t.unflatten(1, (key_heads, size)).repeat_interleave(2, 1).flatten(1)

    wanted = attention_in_float64(q, repeated(k), repeated(v), heads, starts, False, 0, None)
    for target in TARGETS:
        program = native.module.Program()
        operands = [[program.input(t.shape[1]), 0] for t in (q, k, v)]
        y = program.result(heads * size)
        sizes = [heads, key_heads, size, size]
        program.attention(target, sizes, size**-0.5, False, 0, *operands, -1, y)
        (made,) = run(program, 700, [q, k, v], [heads * size], starts)
        assert (np.abs(made.double().numpy() - wanted) <= 5e-6 * np.abs(v.numpy()).max()).all()


@pytest.mark.parametrize("target", parameters(native.targets("normalize_rows")))
def test_nan_of_a_row_stays_in_its_row(target):
    x, ones = torch.randn(3, 24), torch.ones(24)
    x[1, 5] = torch.nan
    _, normed = normalized(target, x, torch.zeros(3, 24), ones, ones, 1e-5, True)
    program = native.module.Program()
    number = program.input(24)
    program.gate(
        native.module.Nonlinearity.gelu, target, [number, 0], [number, 12], program.result(12)
    )
    (gated,) = run(program, 3, [x], [12])
    program = native.module.Program()
    numbers = [program.input(24), program.input(24), program.input(24)]
    program.rotate([numbers[0], 0], 1, 24, *numbers[1:], program.result(24))
    (turned,) = run(program, 3, [x, torch.ones(3, 24), torch.ones(3, 24)], [24])
    for y in (normed, gated, turned):
        assert y.isnan().any(1).tolist() == [False, True, False]
    assert normed[1].isnan().all() and gated[1].isnan().nonzero().tolist() == [[5]]


def test_nan_shows_where_it_counts_and_nowhere_else():
    q, k, v = (torch.randn(9, 32) for _ in range(3))
    k[2] = torch.nan
    for target in TARGETS:
        y = attended(target, q, k, v, 2, [0, 4, 9])
        assert y[:4].isnan().all() and not y[4:].isnan().any()


# The beginning of the message, and the call that raises it.
WRONG = {
    "a matrix of 0 columns": lambda p: p.input(0),
    "column -16 of the arena is no multiple of 16": lambda p: p.in_arena(4, -16),
    "column 8 of the arena is no multiple of 16": lambda p: p.in_arena(4, 8),
    "a term has 5 columns, not a matrix of 4 columns": lambda p: p.add(
        p.input(4), p.input(5), p.result(4)
    ),
    "a term is number 7 of 2, not a matrix of 4 columns": lambda p: p.add(
        p.input(4), 7, p.result(4)
    ),
    "what is normalized has 5 columns, not a matrix of 4 columns": lambda p: p.normalize(
        "scalar", 4, 0, 0, 1e-5, True, p.input(5), -1, -1, p.result(4)
    ),
    "no target none; there are scalar": lambda p: p.normalize(
        "none", 4, 0, 0, 1e-5, True, p.input(4), -1, -1, p.result(4)
    ),
    "attention of 3 heads of 4 and 4 numbers over 2: heads have 1 to 512": lambda p: p.attention(
        "scalar", [3, 2, 4, 4], 1.0, False, 0, *([p.input(12), 0] for _ in "qkv"), -1, p.result(12)
    ),
    "attention of 1 heads of 513 and 4 numbers over 1: heads have 1 to 512": lambda p: p.attention(
        "scalar",
        [1, 1, 513, 4],
        1.0,
        False,
        0,
        [p.input(513), 0],
        [p.input(513), 0],
        [p.input(4), 0],
        -1,
        p.result(4),
    ),
    "queries are columns 9 to 13 of matrix 0, which has 12": lambda p: p.attention(
        "scalar", [1, 1, 4, 4], 1.0, False, 0, *([p.input(12), 9] for _ in "qkv"), -1, p.result(4)
    ),
    "rotation of 2 heads of 3 numbers": lambda p: p.rotate(
        [p.input(6), 0], 2, 3, p.input(3), p.input(3), p.result(6)
    ),
    "a gate are columns 0 to 4 of matrix 1, which has 3": lambda p: p.gate(
        native.module.Nonlinearity.gelu, "scalar", [p.input(4), 0], [p.input(3), 0], p.result(4)
    ),
    "ids -1 are less than 0": lambda p: p.lookup(0, 3, 4, -1, p.result(4)),
    "0 layers for 1 results": lambda p: p.linear(
        native.module.LinearTarget("scalar", False), [], [], 0, [0], 1
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_does_not_fit_is_refused_before_it_runs(sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        WRONG[sentence](native.module.Program())


@pytest.mark.parametrize("starts", [[1, 2], [0, 1], [0, 2, 1, 2], [0, 3, 2]])
def test_sequences_that_are_not_the_rows_are_refused(starts):
    program = native.module.Program()
    x = torch.randn(2, 4)
    program.add(*[program.input(4)] * 2, program.result(4))
    places, arena = torch.arange(4), torch.empty(program.arena_bytes(2), dtype=torch.uint8)
    addresses = [[t.data_ptr() for t in each] for each in ((), (x,), (x.clone(),), ())]
    begins = torch.tensor(starts)
    with pytest.raises(ValueError, match="^sequences "):
        program.run(
            2, len(starts) - 1, begins.data_ptr(), places.data_ptr(), *addresses, 0,
            arena.data_ptr(), 0, 1,
        )  # fmt: skip


@pytest.mark.parametrize("part", [(-1, 1), (1, 0), (0, 2)])
def test_operations_that_are_not_there_are_refused(part):
    program = native.module.Program()
    program.add(*[program.input(4)] * 2, program.result(4))
    zeros = torch.zeros(1, dtype=torch.int64)
    none = zeros.data_ptr()
    with pytest.raises(ValueError, match=f"^operations {part[0]} to {part[1]} of 1$"):
        program.run(0, 0, none, none, [], [0], [0], [], 0, 0, *part)


def test_what_is_not_in_the_arena_has_no_place():
    program = native.module.Program()
    with pytest.raises(ValueError, match="matrix 0 is not in the arena"):
        program.place(program.input(4), 1, 0)


def test_ids_are_checked_before_anything_is_read():
    program, table, ids = native.module.Program(), torch.randn(3, 4), torch.tensor([0, 3])
    program.lookup(table.data_ptr(), 3, 4, 0, program.result(4))
    with pytest.raises(IndexError, match="id 3 leaves a table of 3 rows"):
        run(program, 2, [], [4], ids=[ids])
    (rows,) = run(program, 2, [], [4], ids=[torch.tensor([2, 0])])
    assert torch.equal(rows, table[[2, 0]])
