import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import InputError, UsageError
from lowbit.formats import CHANNEL, group
from lowbit.formats.binary import decode, prefix
from lowbit.schemes import Binary, Clustered, ZeroPoint
from lowbit.schemes.levels import Levels
from lowbit.solvers.binary import compensated as binary_compensated
from lowbit.solvers.binary.compensated import solve
from lowbit.solvers.binary.group import GroupProblem, compensate, search
from tests.oracles import binary_compensated as oracle
from tests.oracles import packing
from tests.oracles.binary import levels as all_levels

DAMPING = 0.01


def correlated(rows, columns, seed, tokens=200):
    """A weight, and the hessian of inputs in which a few directions prevail."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    sizes = 0.9 ** torch.arange(columns, dtype=torch.float64)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) * sizes @ mixed + 0.5
    return torch.randn(rows, columns, generator=generator), x.t() @ x / tokens


def error_of(weight, q, hessian):
    return oracle.error(weight.double().numpy() - decode(q).double().numpy(), hessian.numpy())


def schemes():
    sizes = st.sampled_from([CHANNEL, group(8), group(12)])
    return st.builds(Binary, bits=st.integers(1, 4), granularity=sizes, offset=st.booleans())


@settings(max_examples=10)
@given(schemes(), st.integers(1, 5), st.integers(12, 40), st.integers(0, 2**16))
def test_it_errs_less_than_nearest_codes_by_its_own_objective(scheme, rows, columns, seed):
    weight, hessian = correlated(rows, columns, seed)
    compensated = solve(weight, hessian, scheme, damping=DAMPING)
    objective = torch.from_numpy(oracle.damped(hessian.numpy(), DAMPING))
    nearest = error_of(weight, scheme.quantize(weight), objective)
    assert error_of(weight, compensated, objective) <= 1.001 * nearest


def test_clusters_are_solved_each_by_itself():
    weight, hessian = correlated(9, 24, seed=0)
    found = solve(weight, hessian, Clustered(Binary(3, CHANNEL), 2, ratio=2))
    for part, rows, bits in zip(found.parts, weight.split([3, 6]), (3, 2), strict=True):
        wanted = solve(rows, hessian, Binary(bits, CHANNEL))
        assert part.layout == wanted.layout and torch.equal(decode(part), decode(wanted))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_on_correlated_inputs_the_error_is_a_fraction_of_nearests(bits):
    weight, hessian = correlated(16, 64, seed=bits, tokens=1000)
    scheme = Binary(bits, group(32))
    compensated = error_of(weight, solve(weight, hessian, scheme), hessian)
    assert compensated <= 0.5 * error_of(weight, scheme.quantize(weight), hessian)


def test_each_step_lessens_the_error():
    weight, hessian = correlated(16, 48, seed=0, tokens=1000)
    objective = torch.from_numpy(oracle.damped(hessian.numpy(), DAMPING))
    errors = [
        error_of(weight, solve(weight, hessian, Binary(2, group(16)), passes=n), objective)
        for n in (0, 1, 4)
    ]
    assert errors[2] < errors[1] < errors[0]


@settings(max_examples=5)
@given(schemes(), st.integers(0, 2**16))
def test_alpha_and_offset_are_the_best_for_their_codes_for_every_prefix(scheme, seed):
    weight, hessian = correlated(2, 30, seed)
    nested = Binary(scheme.bits, scheme.granularity, scheme.offset, nested=True)
    q = solve(weight, hessian, nested)
    plain = solve(weight, hessian, scheme)
    assert torch.equal(q.planes, plain.planes) and torch.equal(q.alpha, plain.alpha)
    objective = oracle.damped(hessian.numpy(), DAMPING)
    width = scheme.granularity.width(30)
    widths = [min(width, 30 - start) for start in range(0, 30, width)]
    bits = packing.unpack(q.planes.numpy(), 1, 30)
    for planes in range(1, scheme.bits + 1):
        decoded = decode(prefix(q, planes)).double().numpy()
        for row, codes, found in zip(
            weight.double().numpy(), bits.swapaxes(0, 1), decoded, strict=True
        ):
            best = oracle.best_parameters_error(
                row, codes[:planes], objective, widths, scheme.offset
            )
            got = oracle.error((row - found)[None], objective)
            # α and o are rounded to float16, each by at most 2⁻¹¹ of itself.
            size = 2.0**-11 * np.abs(row).max() * 4
            slack = size**2 * np.trace(objective) + 2 * size * np.sqrt(best * np.trace(objective))
            assert best - 1e-9 <= got <= best + slack


@settings(max_examples=5)
@given(st.integers(1, 3), st.integers(0, 2**16))
def test_the_problem_of_each_group_is_that_of_the_dense_formulas(bits, seed):
    weight, hessian = correlated(2, 18, seed)
    seen, improve = [], binary_compensated.improve
    with pytest.MonkeyPatch.context() as patched:

        def spy(problem, fit):
            seen.append((problem, improve(problem, fit)))
            return seen[-1][1]

        patched.setattr(binary_compensated, "improve", spy)
        solve(weight, hessian, Binary(bits, group(6)), passes=1)
    dense = oracle.damped(hessian.numpy(), DAMPING)
    importance = np.diag(dense)
    groups = [np.arange(start, start + 6) for start in (0, 6, 12)]
    groups = [g[np.argsort(-importance[g], kind="stable")] for g in groups]
    groups.sort(key=lambda g: -importance[g].mean())
    w = weight.double().numpy()
    coded, done = np.zeros_like(w), np.array([], dtype=int)
    for part, (problem, fit) in zip(groups, seen[:3], strict=True):
        target = oracle.best_of_the_rest(w, coded, dense, done)[:, part]
        later = np.setdiff1d(np.arange(18), np.concatenate([done, part]))
        np.testing.assert_allclose(problem.target.T.numpy(), target, rtol=1e-6, atol=1e-8)
        wanted = oracle.remaining(dense, part, later)
        np.testing.assert_allclose(problem.matrix.numpy(), wanted, rtol=1e-6, atol=1e-8)
        coded[:, part] = fit.values.T.numpy()
        done = np.concatenate([done, part])
    for part, (problem, fit) in zip(groups, seen[3:], strict=True):
        others = np.setdiff1d(np.arange(18), part)
        target = oracle.best_of_the_rest(w, coded, dense, others)[:, part]
        np.testing.assert_allclose(problem.target.T.numpy(), target, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(problem.matrix.numpy(), dense[np.ix_(part, part)])
        coded[:, part] = fit.values.T.numpy()


@pytest.fixture
def problem():
    weight, hessian = correlated(5, 10, seed=3)
    return GroupProblem(weight.double().t().contiguous(), hessian, Binary(2), torch.float16)


LEVELS = Levels(
    torch.tensor([[0.9] * 5, [0.4] * 5], dtype=torch.float64), torch.full((5,), 0.1).double()
)


def test_each_code_in_turn_is_the_best_of_all_levels(problem):
    start = torch.zeros(10, 5, dtype=torch.float64)
    found = search(problem, LEVELS, start).values.numpy()
    values = all_levels([0.9, 0.4], LEVELS.offset[0].item())
    for row in range(5):
        wanted = problem.target[:, row].numpy()
        slow = oracle.search(wanted, problem.matrix.numpy(), values, np.zeros(10))
        np.testing.assert_allclose(found[:, row], slow, atol=1e-12)


def test_what_one_input_errs_those_after_it_make_good(problem):
    inverse = torch.linalg.inv(problem.matrix)
    factor = torch.linalg.cholesky(inverse, upper=True)
    found = compensate(problem, LEVELS, factor).values.t().numpy()
    values = all_levels([0.9, 0.4], LEVELS.offset[0].item())
    w, dense, coded = problem.target.t().numpy(), problem.matrix.numpy(), np.zeros((5, 10))
    for j in range(10):
        left = oracle.best_of_the_rest(w, coded, dense, np.arange(j))[:, j]
        coded[:, j] = values[np.abs(left[:, None] - values).argmin(1)]
    np.testing.assert_allclose(found, coded, atol=1e-12)


@pytest.mark.parametrize("hessian", [torch.zeros(16, 16), torch.ones(16, 16)])
def test_a_hessian_without_an_inverse_is_damped(hessian):
    weight, _ = correlated(4, 16, seed=0)
    q = solve(weight, hessian, Binary(2, group(8)))
    assert torch.isfinite(decode(q)).all() and q.shape == (4, 16)


@pytest.mark.parametrize("magnitude, dtype", [(1.0, torch.float16), (1e-9, torch.float32)])
def test_alpha_is_stored_as_the_scheme_stores_it(magnitude, dtype):
    weight, hessian = correlated(8, 32, seed=1)
    q = solve(weight * magnitude, hessian, Binary(3, group(16)))
    assert q.alpha.dtype == q.offset.dtype == dtype
    assert error_of(weight * magnitude, q, hessian) <= 0.05 * magnitude**2 * oracle.error(
        weight.double().numpy(), hessian.numpy()
    )


def test_levels_that_leave_float16_by_compensation_are_stored_in_float32():
    """The second group has to make good a hundred times what it is itself."""
    weight = torch.cat([2e4 * (torch.arange(8) % 3 - 1.0), torch.ones(8)]).repeat(2, 1)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, 0.01 * x], 1)
    q = solve(weight, x.t() @ x, Binary(1, group(8)), damping=1e-6)
    assert q.alpha.dtype == torch.float32 and torch.isfinite(decode(q)).all()


@pytest.mark.parametrize(
    "weight, scheme, error, message",
    [
        (torch.ones(2, 16), ZeroPoint(4), UsageError, "not for scheme zero-point"),
        (torch.full((2, 16), torch.nan), Binary(2, CHANNEL), InputError, "finite"),
        (torch.ones(2, 16), Binary(2, group(64)), UsageError, "64"),
    ],
)
def test_what_it_cannot_solve_gets_one_sentence(weight, scheme, error, message):
    with pytest.raises(error, match=message):
        solve(weight, torch.eye(16), scheme)
