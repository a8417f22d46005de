"""Check that a model is a plain float model with data, which can be quantized.

Each error names the module and the remedy.
"""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lowbit.errors import InputError

# Hooks that compute a weight before each call, and the function that removes each.
_REMEDIES: dict[type, str] = {
    BasePruningMethod: "torch.nn.utils.prune.remove",
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
}
_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)


def check_plain(model: nn.Module) -> None:
    """Raises InputError if a model has adapters that are not merged, was quantized by another
    library, or has lazy modules without a shape."""
    for name, module in model.named_modules():
        if is_adapted(module):
            raise InputError(
                f"{name or type(module).__name__} has an adapter that is not merged:"
                " merge the adapters first (merge_and_unload)"
            )
        library = quantized_by(module)
        if library is not None:
            what = name or "the model"
            raise InputError(f"{what} is already quantized ({library}); quantize the float model")
        for own, parameter in module._parameters.items():
            if parameter is not None and is_lazy(parameter):
                raise InputError(
                    f"{name}.{own} has no shape yet: run the model once, then quantize it"
                )


def check_parameters(name: str, module: nn.Module) -> None:
    """Raises InputError if the weight or bias of a module to quantize is computed from other
    tensors before each call."""
    for own in ("weight", "bias"):
        if module._parameters.get(own) is None and getattr(module, own, None) is not None:
            raise InputError(
                f"{name}.{own} is computed from other tensors before each call:"
                f" {_remedy(module, own)} first"
            )


def _remedy(module: nn.Module, own: str) -> str:
    if parametrize.is_parametrized(module, own):
        return f"call torch.nn.utils.parametrize.remove_parametrizations(module, {own!r})"
    for hook in module._forward_pre_hooks.values():
        for kind, remove in _REMEDIES.items():
            if isinstance(hook, kind):
                return f"call {remove}(module, {own!r})"
    return f"make {own} a parameter"


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is an adapter: it computes with a base module and with trained parameters.

    Examples are the layers of PEFT, and a transformers model with such layers.
    """
    return isinstance(getattr(module, "base_layer", None), nn.Module) or (
        getattr(module, "_hf_peft_config_loaded", False) is True
    )


def quantized_by(module: nn.Module) -> str | None:
    """The library that quantized the weights of this module, or None."""
    quantizer = getattr(module, "hf_quantizer", None)
    if quantizer is not None:
        method = quantizer.quantization_config.quant_method
        return str(getattr(method, "value", method))
    kind = type(module)
    if kind.__module__.startswith("torch.ao.nn.quantized"):
        return "torch.ao"
    parameters: list[Tensor] = [p for p in module._parameters.values() if p is not None]
    for tensor in parameters:
        # A parameter of a tensor subclass; torch's own parameter classes are float.
        library = type(tensor).__module__.partition(".")[0]
        is_wrapper: bool = is_traceable_wrapper_subclass(tensor)
        if is_wrapper and library != "torch":
            return library
    buffers = {name: b for name, b in module._buffers.items() if b is not None}
    scaled = any("scale" in name for name in (*module._parameters, *buffers))
    if any(_is_packed(p) for p in parameters) or (
        scaled and any(map(_is_packed, buffers.values()))
    ):
        return kind.__module__.partition(".")[0]
    return None


def _is_packed(tensor: Tensor) -> bool:
    one_byte_float = tensor.is_floating_point() and tensor.itemsize == 1
    return tensor.ndim == 2 and (tensor.dtype in _PACKED or one_byte_float)
