"""HQQ: half-quadratic quantization without data, with a robust norm that tolerates outliers.

    min over s, z   Σ |w − s · (q − z)|^p,   p = 0.7

An auxiliary error e, in units of s, splits the problem in two:

    e ← shrink(w/s − (q − z)),  shrink(x) = sign(x) · max(|x| − |x|^(p−1) / β, 0)
    z ← mean(q − w/s + e),      s ← least squares of w − s·e on q − z

with growing β. In the format z is one of the codes, unless there is an offset. So z is rounded in
each step, and s changes too. The best grid of all steps is kept, starting with nearest rounding.

Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
equations 3 to 7.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lowbit.errors import UsageError
from lowbit.formats import AffineTensor
from lowbit.formats.granularity import row_blocks
from lowbit.schemes import Scheme
from lowbit.solvers.affine_grid import AffineCodes, Grid

NORM = 0.7
GROWTH = 1.05


def solve(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"] | None,
    scheme: Scheme,
    iterations: int = 20,
    beta: float = 10.0,
) -> AffineTensor:
    """The affine tensor of `weight` by `scheme`. The Hessian is not used.

    Raises UsageError for a scheme that is not affine or has two levels, InputError for a weight
    that is not finite.
    """
    codes = AffineCodes.of(scheme, weight)
    if codes.given is not None:
        raise UsageError(
            f"solver hqq does not fit scheme {scheme.name}, which has scales in two levels: use"
            " nearest, gptq or autoround"
        )
    width = codes.layout.granularity.width(weight.shape[1])
    if codes.layout.granularity.kind == "tensor":
        whole = half_quadratic(weight.double().reshape(-1, 1), codes, iterations, beta)
        scale, zero = whole.scale[:, None], whole.zero[:, None]
        return codes.assemble(whole.codes(weight.double().t()), scale, zero)
    q, scales, zeros = [], [], []
    for rows in row_blocks(*weight.shape):
        parts = weight[rows].double().t().split(width)
        grids = [half_quadratic(part, codes, iterations, beta) for part in parts]
        q.append(torch.cat([g.codes(part) for g, part in zip(grids, parts, strict=True)]))
        scales.append(torch.stack([g.scale for g in grids], 1))
        zeros.append(torch.stack([g.zero for g in grids], 1))
    return codes.assemble(torch.cat(q, 1), torch.cat(scales), torch.cat(zeros))


def half_quadratic(
    w: Float64[Tensor, "n out"], codes: AffineCodes, iterations: int, beta: float
) -> Grid:
    """The best grid of all steps, for each row of the weight."""
    low, high = codes.ends(w)
    if codes.asymmetric:
        scale = codes.stored((high - low) / codes.levels)
        zero = -low / scale
    else:
        scale = codes.stored(2 * torch.maximum(-low, high) / codes.levels)
        zero = torch.full_like(scale, codes.middle)
    best, least = (
        Grid(scale, codes.stored_zero(zero, scale), codes.levels),
        torch.full_like(low, torch.inf),
    )
    for _ in range(iterations + 1):
        grid = Grid(scale, codes.stored_zero(zero, scale), codes.levels)
        q = grid.codes(w)
        off = w / scale - (q - grid.zero)
        error = (off.abs() ** NORM).sum(0) * scale**NORM
        better = error < least
        best = Grid(
            torch.where(better, grid.scale, best.scale),
            torch.where(better, grid.zero, best.zero),
            codes.levels,
        )
        least = torch.minimum(error, least)
        size = off.abs()
        excess = off.sign() * (size - size ** (NORM - 1) / beta).clamp(min=0)
        if codes.asymmetric:
            zero = (q - w / scale + excess).mean(0)
        centred = q - grid.zero
        wanted = (centred * (w - scale * excess)).sum(0) / centred.square().sum(0)
        scale = codes.stored(wanted.nan_to_num(0.0))
        beta *= GROWTH
    return best
