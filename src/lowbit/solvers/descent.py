"""Descent on tr((W − Ŵ) H (W − Ŵ)ᵀ) from good initial codes; the error never increases.

scales   codes fixed, a row w ≈ Σ_g s_g c_g (c = q − z, zero outside group g) is least squares:
         A s = b,  A_gh = c_gᵀ H c_h,  b_g = c_gᵀ H w
codes    column j with all others fixed:  ŵ_j ← nearest to  ŵ_j + ((W − Ŵ) H)_j / H_jj
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from lowbit.solvers.affine_grid import AffineCodes, Grid

COLUMNS_AT_ONCE = 64
RIDGE = 1e-9
# A round that gains less than this share of the error is the last.
GAIN = 1e-3


def descend(
    target: Float64[Tensor, "in out"],
    matrix: Float64[Tensor, "in in"],
    q: Float64[Tensor, "in out"],
    grids: list[Grid],
    width: int,
    codes: AffineCodes,
    rounds: int,
) -> tuple[Float64[Tensor, "in out"], list[Grid]]:
    """Codes and grids after at most `rounds` rounds; stops early without progress."""
    error = row_errors(target, matrix, q, grids, width).sum()
    for _ in range(rounds):
        if codes.layout.granularity.kind != "tensor" and codes.given is None:
            grids = better_scales(target, matrix, q, grids, width, codes)
        q = better_codes(target, matrix, q, grids, width)
        before, error = error, row_errors(target, matrix, q, grids, width).sum()
        if error > (1 - GAIN) * before:
            break
    return q, grids


def better_scales(
    target: Float64[Tensor, "in out"],
    matrix: Float64[Tensor, "in in"],
    q: Float64[Tensor, "in out"],
    grids: Sequence[Grid],
    width: int,
    codes: AffineCodes,
) -> list[Grid]:
    """The scales of least error, as stored, in the rows where they are better."""
    parts = [p - g.zero for p, g in zip(q.split(width), grids, strict=True)]
    centred = torch.cat(parts)
    # A [out, groups, groups] and b [out, groups].
    gram = torch.stack(
        [
            _group_sums(columns @ part * centred, width)
            for part, columns in zip(parts, matrix.split(width, 1), strict=True)
        ],
        1,
    )
    right = _group_sums(centred * (matrix @ target), width)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # A group with only zero codes keeps its scale.
    diagonal += RIDGE * diagonal.amax(1, keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)
    solved, failed = torch.linalg.solve_ex(gram, right)
    old = torch.stack([g.scale for g in grids], 1)
    usable = solved.isfinite() & (solved > 0) & (failed == 0)[:, None]
    new = codes.stored(torch.where(usable, solved, old))
    before, after = (
        row_errors(target, matrix, q, _with(grids, scale, codes), width) for scale in (old, new)
    )
    return _with(grids, torch.where((after < before)[:, None], new, old), codes)


def better_codes(
    target: Float64[Tensor, "in out"],
    matrix: Float64[Tensor, "in in"],
    q: Float64[Tensor, "in out"],
    grids: Sequence[Grid],
    width: int,
) -> Float64[Tensor, "in out"]:
    """One sweep over all columns."""
    q = q.clone()
    residual = matrix @ (target - _values(q, grids, width))
    for i, grid in enumerate(grids):
        stop = min((i + 1) * width, len(q))
        for start in range(i * width, stop, COLUMNS_AT_ONCE):
            block = slice(start, min(start + COLUMNS_AT_ONCE, stop))
            near, local, code = matrix[block, block], residual[block].clone(), q[block]
            before = grid.values(code)
            moved = torch.empty_like(before)
            for j in range(len(near)):
                code[j] = grid.codes(before[j] + local[j] / near[j, j])
                moved[j] = grid.values(code[j]) - before[j]
                local[j + 1 :].addr_(near[j + 1 :, j], moved[j], alpha=-1)
            residual -= matrix[:, block] @ moved
    return q


def row_errors(
    target: Tensor, matrix: Tensor, q: Tensor, grids: Sequence[Grid], width: int
) -> Float64[Tensor, " out"]:
    """The error of each row of the weight."""
    error = target - _values(q, grids, width)
    return ((matrix @ error) * error).sum(0)


def _values(q: Tensor, grids: Sequence[Grid], width: int) -> Float64[Tensor, "in out"]:
    return torch.cat([g.values(p) for p, g in zip(q.split(width), grids, strict=True)])


def _with(
    grids: Sequence[Grid], scale: Float64[Tensor, "out groups"], codes: AffineCodes
) -> list[Grid]:
    each = zip(scale.unbind(1), grids, strict=True)
    return [Grid(s, codes.stored_zero(g.zero, s), g.levels) for s, g in each]


def _group_sums(x: Float64[Tensor, "in out"], width: int) -> Float64[Tensor, "out groups"]:
    return torch.stack([p.sum(0) for p in x.split(width)], 1)
