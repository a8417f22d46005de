import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.schemes import levels
from lowbit.schemes.levels import Levels, SortedGroups
from tests.oracles import binary as oracle


@st.composite
def problems(draw):
    """Groups of weights [N, n], and levels of their size: (weights, Levels)."""
    bits, groups, n = draw(st.integers(1, 4)), draw(st.integers(0, 4)), draw(st.integers(1, 20))
    eighths = st.integers(-16, 16).map(lambda k: k / 8)
    weights = draw(
        hnp.arrays(np.float32, (groups, n), elements=eighths | st.floats(-3, 3, width=32))
    )
    alpha = draw(hnp.arrays(np.float64, (bits, groups), elements=eighths | st.floats(-1, 1)))
    offset = draw(hnp.arrays(np.float64, groups, elements=eighths))
    return torch.from_numpy(weights), Levels(torch.tensor(alpha), torch.tensor(offset))


def each(weights, found):
    """Per group, in NumPy: its number, weights, α and o."""
    for k, w in enumerate(weights.double().numpy()):
        yield k, w, found.alpha[:, k].numpy(), found.offset[k].item()


@given(problems())
def test_alpha_in_descending_order_gives_the_same_levels(problem):
    weights, found = problem
    descending = found.descending()
    assert (descending.alpha >= 0).all() and (descending.alpha.diff(dim=0) <= 0).all()
    for k, _, alpha, offset in each(weights, found):
        same = oracle.levels(descending.alpha[:, k].numpy(), offset)
        np.testing.assert_allclose(same, oracle.levels(alpha, offset), rtol=0, atol=1e-14)


@given(problems())
def test_sorted_levels_ascend_and_each_is_the_value_of_its_code(problem):
    weights, found = problem
    found = found.descending()
    values, code = levels.sorted_levels(found)
    for k, _, alpha, offset in each(weights, found):
        v, c = values[:, k].numpy(), code[:, k].numpy()
        np.testing.assert_allclose(v, oracle.levels(alpha, offset), rtol=0, atol=1e-14)
        assert (np.diff(v) >= 0).all() and sorted(c) == list(range(1 << len(alpha)))
        signs = (c[:, None] >> np.arange(len(alpha)) & 1) * 2 - 1
        np.testing.assert_allclose(signs @ alpha + offset, v, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_exchanges_sort_every_order_the_levels_can_have(bits):
    generator = torch.Generator().manual_seed(bits)
    uniform = torch.rand(bits, 20000, generator=generator, dtype=torch.float64)
    # The last column: levels that are equal but for rounding.
    alike = torch.full((bits, 1), 0.99998, dtype=torch.float64)
    alike[-1] = 0.125
    alpha = torch.cat([uniform, uniform**4, 1 + uniform / 20, (4 * uniform).floor(), alike], 1)
    found = Levels(alpha, torch.zeros(alpha.shape[1], dtype=torch.float64)).descending()
    values, _ = levels.sorted_levels(found)
    assert (values.diff(dim=0) >= 0).all()


@given(problems())
def test_cells_and_error_are_those_of_the_nearest_levels(problem):
    weights, found = problem
    found, groups = found.descending(), SortedGroups.of(weights)
    values, _ = levels.sorted_levels(found)
    count, total = levels.cells(groups, values)
    assert (count.sum(0) == weights.shape[1]).all()
    error = levels.error_of(groups, found)
    for k, w, alpha, offset in each(weights, found):
        wanted = oracle.squared_error(w, alpha, offset)
        np.testing.assert_allclose(error[k] + (w**2).sum(), wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(total[:, k].sum(), w.sum(), rtol=0, atol=1e-9)


@given(problems(), st.booleans(), st.data())
def test_least_squares_equals_numpys_for_every_prefix(problem, with_offset, data):
    weights, found = problem
    bits = len(found.alpha)
    code = data.draw(hnp.arrays(np.uint8, weights.shape, elements=st.integers(0, (1 << bits) - 1)))
    count, total = levels.coded_cells(weights, torch.tensor(code).reshape(weights.shape), bits)
    for planes in range(1, bits + 1):
        fitted = levels.refit(count, total, planes, with_offset)
        for k, w, alpha, offset in each(weights, fitted):
            design = code[k] >> np.arange(planes)[:, None] & 1
            wanted = oracle.least_squares(w, design, with_offset)
            got, best = oracle.values(design, alpha, offset), oracle.values(design, *wanted)
            # The ridge of 1e-9 keeps singular systems solvable and costs that much.
            np.testing.assert_allclose(got, best, rtol=0, atol=1e-5)


@given(problems(), st.booleans())
def test_alternating_never_ends_above_where_it_started(problem, with_offset):
    weights, found = problem
    start = found.descending()
    if not with_offset:
        start = Levels(start.alpha, torch.zeros_like(start.offset))
    groups = SortedGroups.of(weights)
    before = levels.error_of(groups, start)
    for iterations in (0, 1, 15):
        ended = levels.alternate(groups, start, with_offset, iterations)
        assert (levels.error_of(groups, ended) <= before).all()
        assert with_offset or (ended.offset == 0).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_where_alternating_ends_least_squares_has_nothing_to_add(bits):
    weights = torch.randn(40, 64, generator=torch.Generator().manual_seed(bits))
    start = Levels(torch.rand(bits, 40, dtype=torch.float64).cumsum(0), weights.double().mean(1))
    ended = levels.alternate(SortedGroups.of(weights), start.descending(), True, 1000)
    _, code = levels.sorted_levels(ended)
    for k, w, alpha, offset in each(weights, ended):
        position = np.searchsorted(
            oracle.levels(alpha, offset), oracle.nearest(w, alpha, offset) - 1e-9
        )
        design = code[:, k].numpy()[position] >> np.arange(bits)[:, None] & 1
        best = oracle.values(design, *oracle.least_squares(w, design, True))
        reached = oracle.squared_error(w, alpha, offset)
        assert reached <= ((w - best) ** 2).sum() * (1 + 1e-6)


@given(problems(), st.booleans())
def test_uniform_levels_are_evenly_spaced_within_the_range(problem, with_offset):
    weights, found = problem
    bits = len(found.alpha)
    grid = levels.uniform_levels(SortedGroups.of(weights), bits, with_offset)
    for _, w, alpha, offset in each(weights, grid):
        step = np.diff(oracle.levels(alpha, offset))
        np.testing.assert_allclose(step, 2 * alpha[-1], rtol=0, atol=1e-12)
        reach = np.abs(w - offset).max()
        assert alpha.sum() <= reach + 1e-12
        assert with_offset or offset == 0


def test_the_best_uniform_grid_beats_the_one_that_spans_the_range():
    weights = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    groups = SortedGroups.of(weights)
    grid = levels.uniform_levels(groups, 3, True)
    full = (weights.amax(1) - weights.amin(1)).double() / 7
    widest = Levels(full * torch.tensor([[2.0], [1.0], [0.5]], dtype=torch.float64), grid.offset)
    assert (levels.error_of(groups, grid) < levels.error_of(groups, widest)).all()


@given(hnp.arrays(np.float32, (3, 9), elements=st.floats(width=32, allow_nan=False)))
def test_ascending_equals_torch_sort(rows):
    rows = torch.from_numpy(rows)
    assert torch.equal(levels.ascending(rows), rows.sort(dim=1).values)


@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**32))
def test_solve_equals_numpys(k, groups, seed):
    random = np.random.default_rng(seed)
    half = random.standard_normal((groups, k, k + 2))
    matrix, right = half @ half.transpose(0, 2, 1), random.standard_normal((groups, k))
    solution = levels.solve(
        torch.tensor(matrix.transpose(1, 2, 0)), torch.tensor(right.transpose(1, 0))
    )
    wanted = np.linalg.solve(matrix, right[..., None])[..., 0]
    np.testing.assert_allclose(solution.numpy().T, wanted, rtol=1e-6, atol=1e-6)
