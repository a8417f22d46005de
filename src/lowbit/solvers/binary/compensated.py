"""Binary codes with error compensation.

    min over α, b, o    tr((W − Ŵ) H (W − Ŵ)ᵀ),    H = mean x xᵀ + damping

If only the weights of the inputs J of one group change, each row is the problem of group.py:

*compensation* (after GPTQ, Frantar et al. 2023, eq. 2 and 3): groups in turn; later groups are
    free and absorb the error. With H⁻¹ = Uᵀ U:  S = (U_JJᵀ U_JJ)⁻¹, t = the weights as compensated
    so far, and after it  W_later −= (t − ŵ) U_JJ⁻¹ U_J,later
*refinement*: groups in turn, the others stay:  S = H_JJ,  t = ŵ + (W − Ŵ) H_:J H_JJ⁻¹
*parameters* (parameters.py): codes stay, α and o of all groups of a row are solved together;
    for each prefix of the planes separately if the tensor is nested.

Groups are sorted by descending mean of H_jj, inputs within a group by descending H_jj: the most
important inputs are coded first, while most weights are still free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lowbit.errors import InputError, UsageError
from lowbit.formats import BinaryTensor, QTensor
from lowbit.formats.binary import decode
from lowbit.schemes import Binary, Scheme
from lowbit.schemes.binary import packed_planes
from lowbit.solvers.binary.group import (
    Fit,
    GroupProblem,
    compensate,
    first_levels,
    improve,
)
from lowbit.solvers.binary.parameters import best_levels
from lowbit.solvers.hessian import damp, weight_error


def solve(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    scheme: Scheme,
    damping: float = 0.01,
    passes: int = 3,
) -> QTensor:
    """The binary tensor of `weight` by `scheme`; parts are solved separately.

    hessian: the mean of x xᵀ. damping: a share of its mean diagonal. passes: of refinement.

    Raises UsageError for a scheme that is not binary or a weight that is no matrix of whole groups,
    InputError for a weight that is not finite.
    """
    return scheme.by_part(weight, lambda rows, part: _solve(rows, hessian, part, damping, passes))


def _solve(
    weight: Tensor, hessian: Tensor, scheme: Scheme, damping: float, passes: int
) -> BinaryTensor:
    if not isinstance(scheme, Binary):
        raise UsageError(f"the solver binary is for binary codes, not for scheme {scheme.name}")
    matrix, nearest = damp(hessian, damping), scheme.quantize(weight)
    # Compensated weights can be larger than the weights and exceed float16.
    for dtype in dict.fromkeys((nearest.alpha.dtype, torch.float32)):
        q = _Sweep.over(weight, matrix, scheme, dtype).run(passes)
        if q is not None:
            return _better_rows(weight.detach(), matrix, q, nearest)
    raise InputError("the levels of this weight leave the range of float32")


def _better_rows(
    weight: Tensor, matrix: Float64[Tensor, "in in"], found: BinaryTensor, nearest: BinaryTensor
) -> BinaryTensor:
    """The result, with nearest codes in the rows where they have less error. With few inputs or
    bits a sweep can be worse."""
    errors = [weight_error(weight.double() - decode(q).double(), matrix) for q in (found, nearest)]
    better = errors[0] <= errors[1]

    def chosen(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(torch.where(better, x, y.to(x.dtype)) for x, y in zip(a, b, strict=True))

    offsets = None
    if found.offsets is not None and nearest.offsets is not None:
        offsets = chosen(found.offsets, nearest.offsets)
    return replace(
        found,
        planes=torch.where(better[:, None], found.planes, nearest.planes),
        alphas=chosen(found.alphas, nearest.alphas),
        offsets=offsets,
    )


@dataclass(frozen=True)
class _Sweep:
    """A weight and its matrix with the inputs in the order of the sweep.

    order: the input at each position. groups: the positions of each group. place: where each group
    of the weight is among them.
    """

    weight: Float64[Tensor, "in out"]
    matrix: Float64[Tensor, "in in"]
    scheme: Binary
    dtype: torch.dtype
    order: Int64[Tensor, " in"]
    groups: Sequence[slice]
    place: Sequence[int]

    @classmethod
    def over(
        cls, weight: Tensor, matrix: Float64[Tensor, "in in"], scheme: Binary, dtype: torch.dtype
    ) -> "_Sweep":
        importance, inputs = matrix.diagonal(), torch.arange(len(matrix), device=matrix.device)
        stored = inputs.split(scheme.granularity.width(len(matrix)))
        parts = [part[importance[part].argsort(descending=True, stable=True)] for part in stored]
        turns = sorted(range(len(parts)), key=lambda g: -importance[parts[g]].mean().item())
        order = torch.cat([parts[g] for g in turns])
        edges = accumulate((len(parts[g]) for g in turns), initial=0)
        return cls(
            weight=weight.detach().double().t()[order],
            matrix=matrix[order][:, order],
            scheme=scheme,
            dtype=dtype,
            order=order,
            groups=[slice(start, stop) for start, stop in pairwise(edges)],
            place=sorted(range(len(turns)), key=turns.__getitem__),
        )

    def run(self, passes: int) -> BinaryTensor | None:
        """Run all steps. Returns None if levels leave the range of `dtype`."""
        fits = self.compensated()
        if not all(fit.levels.alpha.sum(0).add(fit.levels.offset).isfinite().all() for fit in fits):
            return None
        self.refine(fits, passes)
        codes = torch.cat([fit.codes for fit in fits])
        bits, with_offset = self.scheme.bits, self.scheme.offset
        alphas, offsets = [], []
        for planes in range(1 if self.scheme.nested else bits, bits + 1):
            found = best_levels(self.weight, self.matrix, codes, self.groups, planes, with_offset)
            alphas.append(torch.stack([found[i].alpha for i in self.place]).to(self.dtype))
            offsets.append(torch.stack([found[i].offset for i in self.place]).to(self.dtype))
        if not all(parameters.isfinite().all() for parameters in (*alphas, *offsets)):
            return None
        stored = codes[self.order.argsort()].t().to(torch.uint8).contiguous()
        return BinaryTensor(
            planes=packed_planes(stored, bits),
            alphas=tuple(alphas),
            offsets=tuple(offsets) if with_offset else None,
            granularity=self.scheme.granularity,
            in_features=len(codes),
        )

    def compensated(self) -> list[Fit]:
        """Fit each group to its weights, compensated for the errors of earlier groups."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix))
        upper = torch.linalg.cholesky(inverse, upper=True)
        left, fits = self.weight.clone(), []
        for at in self.groups:
            own, later = upper[at, at], slice(at.stop, None)
            matrix = torch.cholesky_inverse(own, upper=True)
            problem = GroupProblem(left[at], matrix, self.scheme, self.dtype)
            start = first_levels(problem, own.diagonal() ** -2)
            fits.append(improve(problem, compensate(problem, start, own)))
            away = left[at] - fits[-1].values
            error = torch.linalg.solve_triangular(own.t(), away, upper=False)
            left[later].addmm_(upper[at, later].t(), error, alpha=-1)
        return fits

    def refine(self, fits: list[Fit], passes: int) -> None:
        """Update levels and codes of each group in turn, with all others fixed, in place."""
        push = self.matrix @ (torch.cat([fit.values for fit in fits]) - self.weight)
        factors = [torch.linalg.cholesky(self.matrix[at, at]) for at in self.groups]
        for _ in range(passes):
            for i, at in enumerate(self.groups):
                before = fits[i].values
                target = before - torch.cholesky_solve(push[at], factors[i])
                problem = GroupProblem(target, self.matrix[at, at], self.scheme, self.dtype)
                fits[i] = improve(problem, fits[i])
                push.addmm_(self.matrix[:, at], fits[i].values - before)
