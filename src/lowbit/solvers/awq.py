"""AWQ: a scale per input, found by search, gives weights of large inputs a finer grid.

    f_j = (mean x_j²)^(a/2),  a in 0 … 1 with least Σ tr((W − Ŵ) H (W − Ŵ)ᵀ),  Ŵ = Q(W·f) / f

over the weights that read the same x; a = 0 is nearest rounding. x is divided by f in the module
before (folding.py), so that nothing is computed at run time. The paper takes the mean of |x_j|.

Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization", equations 4 and 5.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from lowbit.formats import decode
from lowbit.schemes import Scheme
from lowbit.solvers.hessian import Inputs, weight_error

STEPS = 10


def factors(
    weights: Sequence[Float32[Tensor, "_out in"]], inputs: Inputs, schemes: Sequence[Scheme]
) -> Float32[Tensor, " in"]:
    """The best f, around 1."""
    size = inputs.hessian.diagonal().sqrt()
    size = size.clamp(min=1e-4 * size.max().clamp(min=torch.finfo(size.dtype).tiny))
    best, least = torch.ones_like(size), torch.inf
    for step in range(STEPS + 1):
        f = size ** (step / STEPS)
        f = f / (f.max() * f.min()).sqrt()
        error = 0.0
        for weight, scheme in zip(weights, schemes, strict=True):
            q = scheme.quantize(weight * f)
            decoded = decode(q) / f
            error += weight_error(weight - decoded, inputs.hessian).sum().item()
        if error < least:
            best, least = f, error
    return best
