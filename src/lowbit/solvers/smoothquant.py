"""SmoothQuant: move the outliers of activations into the weights.

    f_j = max|x_j|^a / max|w_j|^(1 − a),  a = 1/2,   y = (W · diag(f)) (x / f)

over the weights that read the same x. The previous module divides x by f (folding.py), so that one
scale per token, or for all tokens, loses less.

Source: Xiao et al. 2022, "SmoothQuant", equation 4.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from lowbit.schemes import Scheme
from lowbit.solvers.hessian import Inputs

STRENGTH = 0.5


def factors(
    weights: Sequence[Float32[Tensor, "_out in"]], inputs: Inputs, schemes: Sequence[Scheme]
) -> Float32[Tensor, " in"]:
    """The factors f; 1 for an input that is always 0 or has only zero weights."""
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    f = inputs.largest**STRENGTH / largest ** (1 - STRENGTH)
    return torch.where((inputs.largest > 0) & (largest > 0), f, torch.ones_like(f))
