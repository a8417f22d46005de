"""Descent on tr((W − Ŵ) H (W − Ŵ)ᵀ) from codes that are good already; never upwards.

    scales   codes fixed, a row w ≈ Σ_g s_g c_g (c = q − z, zero outside group g) is least squares:
             A s = b,  A_gh = c_gᵀ H c_h,  b_g = c_gᵀ H w
    codes    column j with all others fixed:  ŵ_j ← nearest to  ŵ_j + ((W − Ŵ) H)_j / H_jj
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from lowbit.solvers.affine_grid import Codes, Grid
from lowbit.solvers.hessian import weight_error

COLUMNS_AT_ONCE = 64
RIDGE = 1e-9
# A round that gains less than this share of the error is the last.
GAIN = 1e-3


def descend(
    target: Float64[Tensor, "out in"],
    matrix: Float64[Tensor, "in in"],
    q: Float64[Tensor, "out in"],
    grids: list[Grid],
    width: int,
    codes: Codes,
    rounds: int,
) -> tuple[Float64[Tensor, "out in"], list[Grid]]:
    """Codes and grids after so many rounds, or fewer where they gain nothing."""
    error = _error(target, matrix, q, grids, width)
    for _ in range(rounds):
        if codes.granularity.kind != "tensor":
            grids = better_scales(target, matrix, q, grids, width, codes)
        q = better_codes(target, matrix, q, grids, width)
        before, error = error, _error(target, matrix, q, grids, width)
        if error > (1 - GAIN) * before:
            break
    return q, grids


def better_scales(
    target: Float64[Tensor, "out in"],
    matrix: Float64[Tensor, "in in"],
    q: Float64[Tensor, "out in"],
    grids: Sequence[Grid],
    width: int,
    codes: Codes,
) -> list[Grid]:
    """The scales of least error, as stored, in the rows where they are better."""
    centred = torch.cat(
        [p - g.zero[:, None] for p, g in zip(q.split(width, 1), grids, strict=True)], 1
    )
    parts = list(centred.split(width, 1))
    gram = torch.stack(
        [
            torch.stack([p.sum(1) for p in (part @ rows * centred).split(width, 1)], 1)
            for part, rows in zip(parts, matrix.split(width), strict=True)
        ],
        1,
    )
    moments = (centred * (target @ matrix)).split(width, 1)
    right = torch.stack([m.sum(1) for m in moments], 1)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # A group without codes other than zero has no say, and keeps its scale.
    diagonal += RIDGE * diagonal.amax(1, keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)
    solved, failed = torch.linalg.solve_ex(gram, right)
    old = torch.stack([g.scale for g in grids], 1)
    usable = solved.isfinite() & (solved > 0) & (failed == 0)[:, None]
    new = codes.stored(torch.where(usable, solved, old))
    tried = [Grid(s, g.zero, g.levels) for s, g in zip(new.unbind(1), grids, strict=True)]
    before, after = (_errors(target, matrix, q, g, width) for g in (grids, tried))
    kept = torch.where((after < before)[:, None], new, old)
    return [Grid(s, g.zero, g.levels) for s, g in zip(kept.unbind(1), grids, strict=True)]


def better_codes(
    target: Float64[Tensor, "out in"],
    matrix: Float64[Tensor, "in in"],
    q: Float64[Tensor, "out in"],
    grids: Sequence[Grid],
    width: int,
) -> Float64[Tensor, "out in"]:
    """One sweep over all columns."""
    q = q.clone()
    residual = (target - _values(q, grids, width)) @ matrix
    for i, grid in enumerate(grids):
        stop = min((i + 1) * width, q.shape[1])
        for start in range(i * width, stop, COLUMNS_AT_ONCE):
            block = slice(start, min(start + COLUMNS_AT_ONCE, stop))
            near, local = matrix[block, block], residual[:, block].clone()
            before = grid.values(q[:, block])
            after = before.clone()
            for j in range(near.shape[0]):
                wanted = after[:, j] + local[:, j] / near[j, j]
                code = grid.codes(wanted[:, None])
                moved = grid.values(code)[:, 0] - after[:, j]
                q[:, start + j], after[:, j] = code[:, 0], after[:, j] + moved
                local -= moved[:, None] * near[j]
            residual -= (after - before) @ matrix[block]
    return q


def _values(q: Tensor, grids: Sequence[Grid], width: int) -> Float64[Tensor, "out in"]:
    return torch.cat([g.values(p) for p, g in zip(q.split(width, 1), grids, strict=True)], 1)


def _errors(
    target: Tensor, matrix: Tensor, q: Tensor, grids: Sequence[Grid], width: int
) -> Float64[Tensor, " out"]:
    return weight_error(target - _values(q, grids, width), matrix)


def _error(
    target: Tensor, matrix: Tensor, q: Tensor, grids: Sequence[Grid], width: int
) -> float:
    return _errors(target, matrix, q, grids, width).sum().item()
