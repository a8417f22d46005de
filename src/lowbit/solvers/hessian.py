"""Statistics of the inputs x of a layer from calibration: the Hessian and its damping.

    H = mean over tokens of x xᵀ,    ‖W X − Ŵ X‖² / tokens = tr((W − Ŵ) H (W − Ŵ)ᵀ)

(half the second derivative of that error in each row of Ŵ, hence the name; Frantar et al. 2022,
"Optimal Brain Compression", section 3).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from lowbit.errors import InputError

# A pivot smaller than this share of the largest is rounding noise of float32 sums.
SINGULAR = 1e-7


@dataclass
class Inputs:
    """H, summed in float32, undamped; the mean and the largest |x| of each input; tokens so far."""

    hessian: Float32[Tensor, "in in"]
    mean: Float32[Tensor, " in"]
    largest: Float32[Tensor, " in"]
    tokens: int = 0

    @classmethod
    def none_yet(cls, width: int, device: torch.device) -> "Inputs":
        none = torch.zeros(width, dtype=torch.float32, device=device)
        return cls(none.new_zeros(width, width), none, none.clone())

    def add(self, x: Float[Tensor, "tokens in"]) -> None:
        """Add tokens. Tokens that are not finite are left out."""
        x = x.detach().float()
        x = x[x.isfinite().all(1)]
        if len(x):
            self.tokens += len(x)
            before = 1 - len(x) / self.tokens
            self.hessian.addmm_(x.t(), x, beta=before, alpha=1 / self.tokens)
            self.mean.mul_(before).add_(x.sum(0), alpha=1 / self.tokens)
            torch.maximum(self.largest, x.abs().amax(0), out=self.largest)

    def scaled(self, factors: Float32[Tensor, " in"]) -> "Inputs":
        """The statistics of x · factors."""
        hessian = self.hessian * factors[:, None] * factors
        return Inputs(hessian, self.mean * factors, self.largest * factors, self.tokens)


def weight_error(
    error: Float[Tensor, "out in"], hessian: Float[Tensor, "in in"]
) -> Float64[Tensor, " out"]:
    """eᵀ H e of each row: its mean squared output error."""
    error, hessian = error.double(), hessian.double()
    return ((error @ hessian) * error).sum(1)


def damp(hessian: Float[Tensor, "in in"], damping: float) -> Float64[Tensor, "in in"]:
    """H + damping · mean(diag H) · I, in float64; the identity if all inputs were 0.

    If the result is not positive definite, damping is multiplied by ten until it is. Raises
    InputError if H is not finite.
    """
    hessian = hessian.double()
    if not hessian.isfinite().all():
        raise InputError("the squares of some activations exceed the range of float32")
    mean = hessian.diagonal().mean()
    eye = torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    if not mean > 0:
        return eye
    while torch.linalg.cholesky_ex(hessian + damping * mean * eye).info:
        damping = max(10 * damping, SINGULAR)
    return hessian + damping * mean * eye


def is_singular(hessian: Float[Tensor, "in in"]) -> bool:
    """Whether H is numerically singular without damping."""
    factor, failed = torch.linalg.cholesky_ex(hessian.double())
    pivots = factor.diagonal().square()
    return bool(failed) or not bool(pivots.min() > SINGULAR * pivots.max())
