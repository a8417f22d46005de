"""GPTQ: columns are rounded one after the other, and those still free make good the error.

    min over Ŵ   tr((W − Ŵ) H (W − Ŵ)ᵀ),   H = mean x xᵀ + damping
    with H⁻¹ = Uᵀ U, U upper triangular:   e_j = (w_j − ŵ_j) / U_jj,   W_later −= e_j U_j,later

Groups are taken in the order of their mean H_jj, columns within a group by their own, so that what
matters most is rounded while most is free. The grid of a group is found when the sweep reaches it,
for the weights as compensated by then, each counting by 1 / U_jj². Updates beyond a block of
columns wait until it is done (lazy updates).

Then *descent*: with everything else fixed, the best scales are a small linear system for each row,
and the best code of one column is known exactly; both in turn, as long as the error falls.

Sources: Frantar et al. 2023, "GPTQ", algorithm 1; Behdin et al. 2023, "QuantEase", for the descent.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lowbit.formats import AffineTensor
from lowbit.schemes import Scheme
from lowbit.solvers.affine_grid import Codes, Grid, fit_grid
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
    codes = Codes.of(scheme, weight)
    target, matrix = weight.double(), damp(hessian, damping)
    columns = target.shape[1]
    width = codes.granularity.width(columns)
    groups = ordered(matrix.diagonal(), width, order)
    sweep = torch.cat(groups)
    # H⁻¹ = Uᵀ U in the order of the sweep.
    factor = torch.linalg.cholesky(matrix[sweep][:, sweep])
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    free = target[:, sweep]
    q, found, at = torch.empty_like(free), [], 0
    # A scale for the whole tensor cannot follow the compensation of a part of it.
    whole = fit_tensor(target, codes) if codes.granularity.kind == "tensor" else None
    for group in groups:
        part = slice(at, at + len(group))
        importance = upper.diagonal()[part].square().reciprocal()
        grid = whole or fit_grid(free[:, part], importance, codes)
        found.append(grid)
        for start in range(at, part.stop, COLUMNS_AT_ONCE):
            block = slice(start, min(start + COLUMNS_AT_ONCE, part.stop))
            error = _round(free[:, block], q[:, block], upper[block, block], grid)
            free[:, block.stop :] -= error @ upper[block, block.stop :]
        at = part.stop
    back = sweep.argsort()
    which = torch.tensor([int(group[0]) // width for group in groups]).argsort().tolist()
    grids = [found[i] for i in which]
    q, grids = descend(target, matrix, q[:, back], grids, width, codes, rounds)
    kept = grids[:1] if whole else grids
    scale, zero = (torch.stack([getattr(g, name) for g in kept], 1) for name in ("scale", "zero"))
    if whole:
        scale, zero = scale[:1], zero[:1]
    return codes.assemble(q.long(), scale, zero)


def ordered(importance: Float64[Tensor, " in"], width: int, order: bool) -> list[Int64[Tensor, " n"]]:
    """The columns of each group of `width`, in the order of the sweep."""
    groups = list(torch.arange(len(importance), device=importance.device).split(width))
    if not order:
        return groups
    groups = [g[importance[g].argsort(descending=True, stable=True)] for g in groups]
    return sorted(groups, key=lambda g: -importance[g].mean().item())


def fit_tensor(weight: Float64[Tensor, "out in"], codes: Codes) -> Grid:
    """One grid for all rows."""
    grid = fit_grid(weight.reshape(1, -1), weight.new_ones(weight.numel()), codes)
    rows = len(weight)
    return Grid(grid.scale.expand(rows), grid.zero.expand(rows), grid.levels)


def _round(
    free: Float64[Tensor, "out n"],
    q: Float64[Tensor, "out n"],
    upper: Float64[Tensor, "n n"],
    grid: Grid,
) -> Float64[Tensor, "out n"]:
    """Round the columns of a block into q, compensating inside it; returns the errors e."""
    errors = torch.empty_like(free)
    for j in range(free.shape[1]):
        column = free[:, j : j + 1]
        q[:, j : j + 1] = code = grid.codes(column)
        error = (column - grid.values(code)) / upper[j, j]
        free[:, j + 1 :] -= error * upper[j, j + 1 :]
        errors[:, j : j + 1] = error
    return errors
