"""Nearest rounding: the scheme alone, independent of the inputs."""

from jaxtyping import Float
from torch import Tensor

from lowbit.formats import QTensor
from lowbit.schemes import Scheme


def solve(
    weight: Float[Tensor, "out in"], hessian: Float[Tensor, "in in"] | None, scheme: Scheme
) -> QTensor:
    """The quantized tensor of `weight` by `scheme`. Raises the errors of the scheme."""
    return scheme.quantize(weight)
