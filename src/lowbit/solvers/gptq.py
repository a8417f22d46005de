"""GPTQ: columns are rounded one after the other, and later columns compensate the error.

    min over Ŵ   tr((W − Ŵ) H (W − Ŵ)ᵀ),   H = mean x xᵀ + damping
    with H⁻¹ = Uᵀ U, U upper triangular:   e_j = (w_j − ŵ_j) / U_jj,   W_later −= e_j U_j,later

Groups are sorted by mean H_jj, columns within a group by H_jj, so that the most important columns
are rounded first, while most columns are free. The grid of a group is fitted when the sweep reaches
it, to the compensated weights, weighted by 1 / U_jj². Two-level grids are fitted before the sweep,
weighted by H_jj. Updates beyond a block of columns are applied after the block (lazy updates).

Then *descent*: with everything else fixed, the best scales are the solution of a small linear
system for each row, and the best code of one column is exact. Both alternate until the error stops
falling.

Sources: Frantar et al. 2023, "GPTQ", algorithm 1; Behdin et al. 2023, "QuantEase", for the descent.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lowbit.formats import AffineTensor
from lowbit.schemes import Scheme
from lowbit.solvers.affine_grid import AffineCodes, Grid, fit_grid
from lowbit.solvers.descent import descend
from lowbit.solvers.hessian import damp

COLUMNS_AT_ONCE = 64


def solve(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    scheme: Scheme,
    damping: float = 0.01,
    order: bool = True,
    rounds: int = 4,
) -> AffineTensor:
    """`weight` in the affine form of `scheme`.

    hessian: the mean of x xᵀ. damping: a share of its mean diagonal. order: by importance, else as
    stored. rounds: of the descent, at most.

    Raises UsageError for a scheme that is not affine, InputError for a weight that is not finite.
    """
    target, matrix = weight.double().t().contiguous(), damp(hessian, damping)
    codes = AffineCodes.of(scheme, weight, matrix.diagonal())
    columns = len(target)
    width = codes.layout.granularity.width(columns)
    groups = ordered(matrix.diagonal(), width, order)
    sweep = torch.cat(groups)
    # H⁻¹ = Uᵀ U in the order of the sweep; Uᵀ is `lower`.
    factor = torch.linalg.cholesky(matrix[sweep][:, sweep])
    lower = torch.linalg.cholesky(torch.cholesky_inverse(factor))
    free, q = target[sweep], torch.empty_like(target)
    # One scale for the whole tensor cannot adapt to compensated columns.
    whole = _fit_tensor(target, codes) if codes.layout.granularity.kind == "tensor" else None
    given = codes.grids()
    grids: dict[int, Grid] = {}
    at = 0
    for group in groups:
        end = at + len(group)
        importance = lower.diagonal()[at:end].square().reciprocal()
        number = int(group[0]) // width
        if given is not None:
            grid = given[number]
        else:
            grid = whole or fit_grid(free[at:end], importance, codes)
        grids[number] = grid
        for start in range(at, end, COLUMNS_AT_ONCE):
            block = slice(start, min(start + COLUMNS_AT_ONCE, end))
            error = _round(free[block], q[block], lower[block, block], grid)
            free[block.stop :] -= lower[block.stop :, block] @ error
        at = end
    found = [grids[i] for i in sorted(grids)]
    q, found = descend(target, matrix, q[sweep.argsort()], found, width, codes, rounds)
    scale, zero = torch.stack([g.scale for g in found], 1), torch.stack([g.zero for g in found], 1)
    units = codes.layout.granularity.parameter_shape(*weight.shape)
    return codes.assemble(q, scale[: units[0]], zero[: units[0]])


def ordered(
    importance: Float64[Tensor, " in"], width: int, order: bool
) -> list[Int64[Tensor, " n"]]:
    """The columns of each group of `width`, in the order of the sweep."""
    groups = list(torch.arange(len(importance), device=importance.device).split(width))
    if not order:
        return groups
    groups = [g[importance[g].argsort(descending=True, stable=True)] for g in groups]
    return sorted(groups, key=lambda g: -importance[g].mean().item())


def _fit_tensor(target: Float64[Tensor, "in out"], codes: AffineCodes) -> Grid:
    """One grid for all rows."""
    grid = fit_grid(target.reshape(-1, 1), target.new_ones(target.numel()), codes)
    rows = target.shape[1]
    return Grid(grid.scale.expand(rows), grid.zero.expand(rows), grid.levels)


def _round(
    free: Float64[Tensor, "n out"],
    q: Float64[Tensor, "n out"],
    lower: Float64[Tensor, "n n"],
    grid: Grid,
) -> Float64[Tensor, "n out"]:
    """Round the columns of a block into q, compensating inside it; returns the errors e."""
    errors = torch.empty_like(free)
    for j in range(len(free)):
        q[j] = grid.codes(free[j])
        errors[j] = (free[j] - grid.values(q[j])) / lower[j, j]
        free[j + 1 :].addr_(lower[j + 1 :, j], errors[j], alpha=-1)
    return errors
