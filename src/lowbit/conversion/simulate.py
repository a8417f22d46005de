"""Simulated quantization: every parameter becomes the value that its quantized tensor decodes to.

    w ← decode(quantize(w))

The model stays float: its size and speed do not change, its outputs do. Matrices are [out, in],
tensors of more dimensions are flattened to [out, rest], vectors are one row. Unlike `quantize`,
this also rounds norms and biases.
"""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowbit.errors import UsageError, check_choice, naming
from lowbit.formats import QTensor, decode
from lowbit.nn import is_quantized
from lowbit.schemes import Scheme
from lowbit.schemes.named import PER_TENSOR


def simulate(model: nn.Module, scheme: str | Scheme) -> dict[str, float]:
    """Replace every parameter by the value that its quantized tensor decodes to, in place.

    The model stays float. A shared parameter is rounded once, under its first name.

    Args:
        model: A float model.
        scheme: "absmax" or "zero-point" (8 bits, one scale per tensor), or any `Scheme`.

    Returns:
        The mean squared error of each parameter, by name.

    Raises:
        UsageError: if the scheme's name is unknown, the model is quantized, or the group size is
            larger than a row.
        InputError: if a parameter is not finite.

    On error, the model is left unchanged.
    """
    if isinstance(scheme, str):
        check_choice("scheme", scheme, PER_TENSOR, f"{', '.join(PER_TENSOR)}, or a Scheme")
        scheme = PER_TENSOR[scheme]
    if is_quantized(model):
        raise UsageError("the model is already quantized with lowbit; simulate on the float model")
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    stored = {
        name: _quantize(name, _matrix(parameter, id(parameter) in transposed), scheme)
        for name, parameter in model.named_parameters()
    }
    errors = {}
    for name, parameter in model.named_parameters():
        q = stored.pop(name)
        matrix = decode(q, parameter.dtype)
        rounded = (matrix.t() if id(parameter) in transposed else matrix).reshape(parameter.shape)
        weight = parameter.detach()
        errors[name] = (weight.double() - rounded.double()).square().mean().item()
        weight.copy_(rounded)
    return errors


def _matrix(parameter: nn.Parameter, transposed: bool) -> Tensor:
    """The parameter as [out, in]: Conv1D stores [in, out]."""
    values = parameter.detach()
    if values.ndim < 2:
        return values.reshape(1, -1)
    return values.t() if transposed else values.flatten(1)


def _quantize(name: str, weight: Tensor, scheme: Scheme) -> QTensor:
    size = scheme.granularity.group_size
    if size is not None and size > weight.shape[1]:
        raise UsageError(
            f"group size {size} is larger than the {weight.shape[1]} values in a row of {name}:"
            " every parameter is simulated, so use a smaller group, channel or tensor"
        )
    with naming(name):
        return scheme.quantize(weight)
