"""SmoothQuant: what is hard to quantize in activations is moved into the weights.

    f_j = max|x_j|^a / max|w_j|^(1 − a),  a = 1/2,   y = (W · diag(f)) (x / f)

over the weights that read the same x. x is divided by f in the module before (folding.py): one
scale for all of a token, or for all tokens, then loses less.

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
    """f; 1 for an input that is always 0 or that no weight takes."""
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    f = inputs.largest**STRENGTH / largest ** (1 - STRENGTH)
    return torch.where((inputs.largest > 0) & (largest > 0), f, torch.ones_like(f))
