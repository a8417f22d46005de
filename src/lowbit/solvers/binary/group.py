"""Binary codes of one group of inputs, under a quadratic error.

    min over α, b, o    (ŵ − t) S (ŵ − t)ᵀ,    ŵ = Σᵢ αᵢ bᵢ + o

for each row separately. S [n, n] is positive definite and shared by all rows. Given levels, codes
are found input by input: each takes the level nearest to its optimum with the others fixed
(coordinate descent). Given codes, levels are least squares in b + 1 unknowns.

Tensors per input or level are [n, out] or [levels, out] in float64, so that each step is vector
arithmetic on long rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lowbit.schemes import levels
from lowbit.schemes.binary import Binary, alternating_levels, nearest_codes
from lowbit.schemes.levels import RIDGE, Levels

# Rounds of weighted least squares and nearest codes before errors are compensated.
WEIGHTED_ROUNDS = 5


@dataclass(frozen=True)
class Fit:
    """Levels as stored, by descending α, and the code of each weight."""

    levels: Levels
    codes: Int64[Tensor, "n out"]

    @property
    def values(self) -> Float64[Tensor, "n out"]:
        return values_of(self.levels, self.codes)

    def where(self, better: Tensor, other: "Fit") -> "Fit":
        """Per row, this fit where `better`, else the other."""
        return Fit(
            self.levels.where(better, other.levels), torch.where(better, self.codes, other.codes)
        )


@dataclass(frozen=True)
class GroupProblem:
    """The target t and the matrix S. `scheme` says how many planes, and whether there is an
    offset; `dtype` is what levels are stored in."""

    target: Float64[Tensor, "n out"]
    matrix: Float64[Tensor, "n n"]
    scheme: Binary
    dtype: torch.dtype

    def error(self, values: Float64[Tensor, "n out"]) -> Float64[Tensor, " out"]:
        """(ŵ − t) S (ŵ − t)ᵀ of each row."""
        away = values - self.target
        return ((self.matrix @ away) * away).sum(0)


def values_of(found: Levels, codes: Int64[Tensor, "n out"]) -> Float64[Tensor, "n out"]:
    """Σᵢ αᵢ bᵢ + o."""
    total = found.offset.expand(codes.shape)
    for i, alpha in enumerate(found.alpha):
        total = total + alpha * ((codes >> i & 1) * 2 - 1)
    return total


def basis(
    codes: Int64[Tensor, "n out"], planes: int, with_offset: bool
) -> Float64[Tensor, "k n out"]:
    """The basis of α and o: the signs of the first planes, and ones for the offset."""
    signs = [((codes >> i & 1) * 2 - 1).double() for i in range(planes)]
    return torch.stack(signs + [torch.ones_like(signs[0])] * with_offset)


def refit(problem: GroupProblem, codes: Int64[Tensor, "n out"]) -> Levels:
    """The levels of least error for these codes, as stored; their signs and order follow those."""
    planes, with_offset = problem.scheme.bits, problem.scheme.offset
    signs = basis(codes, planes, with_offset)
    moved = problem.matrix @ signs
    gram = (moved[:, None] * signs).sum(2)
    gram.diagonal().add_(RIDGE * problem.matrix.trace())
    solution = levels.solve(gram, (moved * problem.target).sum(1))
    none = torch.zeros_like(solution[0])
    return Levels(solution[:planes], solution[planes] if with_offset else none).to(problem.dtype)


def search(problem: GroupProblem, found: Levels, start: Float64[Tensor, "n out"]) -> Fit:
    """Codes for these levels, input by input, from the values `start`."""
    grid = RowLevels(found)
    values = start.clone()
    push = problem.matrix @ (values - problem.target)
    codes = torch.empty(values.shape, dtype=torch.int64, device=values.device)
    for j, row in enumerate(problem.matrix):
        codes[j], nearest = grid.nearest(values[j] - push[j] / row[j])
        push.addr_(row, nearest - values[j])
        values[j] = nearest
    return Fit(found, codes)


def compensate(problem: GroupProblem, found: Levels, factor: Float64[Tensor, "n n"]) -> Fit:
    """Codes for these levels, input by input. Later inputs compensate the error of each.

    factor: the upper triangular U with S⁻¹ = Uᵀ U (GPTQ: Frantar et al. 2023, algorithm 1).
    """
    grid = RowLevels(found)
    left = problem.target.clone()
    codes = torch.empty(left.shape, dtype=torch.int64, device=left.device)
    for j, row in enumerate(factor):
        codes[j], nearest = grid.nearest(left[j])
        left[j + 1 :].addr_(row[j + 1 :], (left[j] - nearest) / row[j], alpha=-1)
    return Fit(found, codes)


class RowLevels:
    """The levels of each row in ascending order."""

    def __init__(self, found: Levels) -> None:
        values, codes = levels.sorted_levels(found)
        self.cuts = levels.thresholds(values).t().contiguous()
        self.values, self.codes = values.t().contiguous(), codes.t().contiguous()

    def nearest(self, wanted: Float64[Tensor, " out"]) -> tuple[Tensor, Tensor]:
        """(code, value) of the nearest level of each row; halfway goes up."""
        at = torch.searchsorted(self.cuts, wanted[:, None], right=True)
        return self.codes.gather(1, at)[:, 0], self.values.gather(1, at)[:, 0]


def first_levels(problem: GroupProblem, importance: Float64[Tensor, " n"]) -> Levels:
    """Levels of least Σⱼ importanceⱼ (ŵⱼ − tⱼ)²: those of the alternating scheme, then nearest
    codes and weighted least squares in turn."""
    groups = problem.target.t().float().contiguous()
    found = alternating_levels(groups, problem.scheme)
    weight = importance.expand(groups.shape).contiguous()
    total = weight * problem.target.t()
    for _ in range(WEIGHTED_ROUNDS):
        codes = nearest_codes(groups, found).long()
        none = weight.new_zeros(len(groups), 1 << problem.scheme.bits)
        cells = none.scatter_add(1, codes, weight).t(), none.scatter_add(1, codes, total).t()
        found = levels.least_squares(*cells, problem.scheme.offset).descending()
    return found.to(problem.dtype)


def improve(problem: GroupProblem, fit: Fit) -> Fit:
    """New levels for the codes, then new codes for the levels, in rows whose error decreases."""
    found = refit(problem, fit.codes)
    other = search(problem, found.descending(), values_of(found, fit.codes))
    return other.where(problem.error(other.values) < problem.error(fit.values), fit)
