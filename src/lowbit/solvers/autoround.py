"""AutoRound: learn rounding and clipping by signed gradient descent.

    ŵ = s · (q − z),  q = clamp(round(w / s + v) + z, 0, 2^b − 1),  v in −1/2 … 1/2
    s = (α max − β min) / (2^b − 1),  z = round(−β min / s),        α, β in 1/2 … 1

v for every weight, α and β for every scale (symmetric codes: z fixed, min = −max; two-level scales:
both fixed). The weights of a block are learned together, to minimize its output error (block.py):

    p ← p − rate · sign(∂ error / ∂ p),   rate = (1 − t / T) / T in step t of T

on one batch after the other, with the straight-through estimator. The start, v = 0 and α = β = 1,
is nearest rounding. The state with the least error on all batches is kept.

Source: Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the
Quantization of LLMs", equations 3 to 5 and algorithm 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lowbit.errors import check_at_least, naming
from lowbit.formats import AffineTensor, QTensor, decode
from lowbit.nn.estimators import straight_through
from lowbit.progress import tracked
from lowbit.schemes import Scheme
from lowbit.schemes.weight_range import weight_range
from lowbit.solvers.affine_grid import AffineCodes
from lowbit.solvers.block import Block
from lowbit.solvers.hessian import damp

# Of v, α and β.
LIMITS = ((-0.5, 0.5), (0.5, 1.0), (0.5, 1.0))
# How often the error on all batches is computed.
CHECKS = 10
# Outside blocks, rows are solved in parts to bound memory.
WEIGHTS_AT_ONCE = 1 << 22
DAMPING = 0.01

# (weights [out, in] by name, the number of a batch) -> their error on it
Error = Callable[[Mapping[str, Tensor], int], Tensor]


def solve_block(
    weights: Mapping[str, Float[Tensor, "_out _in"]],
    schemes: Mapping[str, Scheme],
    block: Block,
    progress: bool = False,
    iterations: int = 200,
) -> dict[str, QTensor]:
    """The affine tensors of the weights of a block, learned together.

    iterations: steps, T; each takes one batch. Raises UsageError for a scheme that is not affine,
    InputError for a weight that is not finite, with the name of its module.
    """
    check_at_least("iterations", iterations, 1)
    roundings, nearest = {}, {}
    for name, weight in weights.items():
        with naming(f"{name}.weight"):
            roundings[name] = Rounding(weight, AffineCodes.of(schemes[name], weight))
            nearest[name] = roundings[name].codes.nearest(schemes[name], weight)
    _descend(roundings, block.error, block.batches, iterations, progress)
    found: dict[str, QTensor] = {name: _assemble(r.codes, [r]) for name, r in roundings.items()}

    def total(stored: Mapping[str, QTensor]) -> float:
        decoded = {name: decode(q) for name, q in stored.items()}
        return sum(block.error(decoded, index).item() for index in range(block.batches))

    # Some schemes have codes that the start above lacks.
    return found if total(found) <= total(nearest) else nearest


def solve(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    scheme: Scheme,
    iterations: int = 200,
) -> QTensor:
    """A weight outside all blocks, by the error of its own output, tr((W − Ŵ) H (W − Ŵ)ᵀ).

    Options and errors as those of `solve_block`.
    """
    check_at_least("iterations", iterations, 1)
    matrix = damp(hessian, DAMPING).float()
    codes = AffineCodes.of(scheme, weight, matrix.diagonal())
    weight = weight.float()
    whole = codes.layout.granularity.kind == "tensor"
    at_once = max(1, len(weight) if whole else WEIGHTS_AT_ONCE // weight.shape[1])

    def error_from(part: Tensor) -> Error:
        def error(weights: Mapping[str, Tensor], index: int) -> Tensor:
            away = weights[""] - part
            return ((away @ matrix) * away).sum()

        return error

    parts = []
    for start in range(0, max(1, len(weight)), at_once):
        rows = slice(start, start + at_once)
        part = weight[rows]
        parts.append(Rounding(part, codes.rows(rows)))
        _descend({"": parts[-1]}, error_from(part), 1, iterations, progress=False)
    found, nearest = _assemble(codes, parts), codes.nearest(scheme, weight)
    error = error_from(weight)
    errors = [error({"": decode(q)}, 0) for q in (found, nearest)]
    return found if errors[0] <= errors[1] else nearest


class Rounding:
    """One weight, rounded by v [out, groups, width], α and β [units, groups]. learned: these
    three."""

    def __init__(self, weight: Float[Tensor, "out in"], codes: AffineCodes) -> None:
        self.codes, self.columns = codes, weight.shape[1]
        layout = codes.layout
        self.weight = layout.granularity.split(weight.float())
        self.low, self.high = weight_range(weight, layout.granularity, not layout.offset)
        grids = codes.grids()
        self.given: tuple[Tensor, Tensor] | None = None
        if grids is not None:
            scale, zero = torch.stack([g.scale for g in grids], 1), [g.zero for g in grids]
            self.given = scale.float(), torch.stack(zero, 1).float()
        if not codes.asymmetric:
            self.high = torch.maximum(-self.low, self.high)
            self.low = -self.high
        self.learned = [
            torch.zeros_like(self.weight, requires_grad=True),
            torch.ones_like(self.high, requires_grad=True),
            torch.ones_like(self.low, requires_grad=True),
        ]

    def values(self) -> Float32[Tensor, "out in"]:
        """ŵ, as decoding will compute it."""
        q, scale, zero = self._codes()
        return ((q - zero[..., None]) * scale[..., None]).flatten(1)[:, : self.columns]

    @torch.no_grad()
    def stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes counted from the lowest [out, in], and scales and zero points [units, groups]."""
        q, scale, zero = self._codes()
        return q.flatten(1)[:, : self.columns], scale, zero

    def _codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `stored`, but the codes in groups [out, groups, width]."""
        (v, alpha, beta), levels = self.learned, self.codes.levels
        if self.given is not None:
            scale, zero = self.given
            return self._rounded_by(scale, zero, v), scale, zero
        # Divide first, as the schemes do, so that the start has exactly their float16 scale.
        exact = self.high * alpha / levels - self.low * beta / levels
        scale = straight_through(exact, self.codes.stored(exact).float())
        zero = torch.full_like(scale, self.codes.middle)
        if self.codes.layout.zero_point:
            zero = _clamped(_rounded(-self.low * beta / scale), levels)
        elif self.codes.layout.offset:
            exact = -self.low * beta / scale
            zero = straight_through(exact, self.codes.stored_zero(exact, scale))
        return self._rounded_by(scale, zero, v), scale, zero

    def _rounded_by(self, scale: Tensor, zero: Tensor, v: Tensor) -> Tensor:
        whole = zero.round()
        quotient = self.weight / scale[..., None] + (zero - whole)[..., None]
        shifted = _rounded(quotient + v) + whole[..., None]
        return _clamped(shifted, self.codes.levels)


def _rounded(x: Tensor) -> Tensor:
    return straight_through(x, x.round())


def _clamped(codes: Tensor, levels: int) -> Tensor:
    """0 … levels, with the gradients of the codes inside and at both ends: those at the ends hold
    the largest weights, and torch.clamp has no gradient there since torch 2.14."""
    outside = (codes < 0) | (codes > levels)
    return torch.where(outside, codes.detach().clamp(0, levels), codes)


def _assemble(codes: AffineCodes, parts: Sequence[Rounding]) -> AffineTensor:
    """The quantized tensor of a weight from its rows."""
    stored = zip(*(part.stored() for part in parts), strict=True)
    q, scale, zero = (torch.cat(tensors) for tensors in stored)
    return codes.assemble(q.t(), scale, zero)


def _descend(
    roundings: Mapping[str, Rounding], error: Error, batches: int, iterations: int, progress: bool
) -> None:
    """Run the descent. Afterwards `roundings` have the best state."""
    learned = [p for r in roundings.values() for p in r.learned]
    best, least = [p.detach().clone() for p in learned], math.inf
    every = -(-iterations // CHECKS)

    def values() -> dict[str, Tensor]:
        return {name: r.values() for name, r in roundings.items()}

    def look() -> None:
        nonlocal best, least
        now = values()
        total = sum(error(now, index).item() for index in range(batches))
        if total < least:
            best, least = [p.detach().clone() for p in learned], total

    with torch.no_grad():
        look()
        for t in tracked(range(iterations), "rounding", "step", progress, leave=False):
            rate = (1 - t / iterations) / iterations
            gradients = _gradients(error, values, t % batches, learned)
            for p, gradient, (low, high) in zip(learned, gradients, cycle(LIMITS), strict=False):
                # None if no token of the batch reached the weight.
                if gradient is not None:
                    p.sub_(gradient.sign_(), alpha=rate).clamp_(low, high)
            if (t + 1) % every == 0 or t + 1 == iterations:
                look()
        for p, kept in zip(learned, best, strict=True):
            p.copy_(kept)


@torch.enable_grad()
def _gradients(
    error: Error, values: Callable[[], dict[str, Tensor]], index: int, learned: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    found = error(values(), index)
    if not found.requires_grad:
        return [None] * len(learned)
    return torch.autograd.grad(found, learned, allow_unused=True)
