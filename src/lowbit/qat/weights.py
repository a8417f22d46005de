"""Fake quantization of a weight: what training sees is what will be stored, bit for bit.

forward   ŵ = decode(encode(w)), by the scheme and formats of post-training quantization
backward  one of ESTIMATORS
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lowbit.errors import UsageError
from lowbit.formats import AffineLayout, AffineTensor, QTensor, decode
from lowbit.formats.affine import code_range, encode
from lowbit.nn.estimators import clipped, learned_step, straight_through
from lowbit.schemes import Scheme
from lowbit.schemes.weight_range import check_finite


class StraightThrough(nn.Module):
    """The scheme as it is; the gradient passes as it is."""

    def __init__(self, scheme: Scheme, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        self.scheme = scheme

    def stored(self, weight: Float[Tensor, "out in"]) -> QTensor:
        """What is saved for a weight."""
        return self.scheme.quantize(weight.detach())

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return straight_through(weight, decode(self.stored(weight), weight.dtype))


class Clipped(StraightThrough):
    """The scheme as it is; no gradient where a weight is clamped to the range of its codes."""

    def __init__(self, scheme: Scheme, weight: Float[Tensor, "out in"]) -> None:
        super().__init__(scheme, weight)
        _check_affine("clipped", scheme, weight)

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        q = self.stored(weight)
        assert isinstance(q, AffineTensor)
        rounded = decode(q, weight.dtype)
        # What is further than half a step from its code was clamped; a little more is rounding.
        error = q.granularity.split((weight.detach() - rounded).abs())
        inside = error <= (0.5 + 2**-10) * q.scale.float().abs()[..., None]
        return clipped(weight, rounded, inside.flatten(1)[:, : q.in_features])


class LearnedStep(StraightThrough):
    """Scales are parameters, which start where the scheme has them; zero points stay."""

    def __init__(self, scheme: Scheme, weight: Float[Tensor, "out in"]) -> None:
        super().__init__(scheme, weight)
        first = _check_affine("lsq", scheme, weight)
        if first.layout.version > 1:
            raise UsageError(
                f"estimator lsq trains plain scales without offsets, and scheme {scheme.name} has"
                f" {first.layout}: use ste or clipped"
            )
        self.scale = nn.Parameter(first.scale.float())
        self.register_buffer("zero_point", first.zero_point)
        self.zero_point: Tensor | None
        self.scale_dtype = first.scale.dtype

    def stored(self, weight: Float[Tensor, "out in"]) -> AffineTensor:
        # NaN would be cast to a code like any other.
        check_finite(weight.detach().sum(dtype=torch.float64) + self.scale.detach().sum(), weight)
        # Steps are positive; training may push one across.
        scale = self.scale.detach().abs().clamp_min(torch.finfo(self.scale_dtype).tiny)
        return encode(
            weight.detach(),
            scale.to(self.scale_dtype),
            self.zero_point,
            self.scheme.bits,
            self.scheme.granularity,
        )

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        q = self.stored(weight)
        low, high = code_range(q)
        split = q.granularity.split
        result = learned_step(
            split(weight),
            self.scale.abs()[..., None],  # as the steps are; its gradient knows the sign
            split(decode(q, weight.dtype)),
            q.scale.float()[..., None],
            low[..., None],
            high[..., None],
            (1 << (q.bits - 1)) - 1,
        )
        return result.flatten(1)[:, : q.in_features]


WeightQuantizer = Callable[[Scheme, Tensor], StraightThrough]
ESTIMATORS: dict[str, WeightQuantizer] = {
    "ste": StraightThrough,
    "clipped": Clipped,
    "lsq": LearnedStep,
}


def _check_affine(estimator: str, scheme: Scheme, weight: Tensor) -> AffineTensor:
    if not isinstance(scheme.layout(len(weight)), AffineLayout):
        raise UsageError(f"estimator {estimator} needs an affine scheme, not {scheme.name}")
    q = scheme.quantize(weight.detach())
    assert isinstance(q, AffineTensor)
    return q
