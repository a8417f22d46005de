"""The numbers of a model that was read from files: what none of them may be.

Stored tensors hold what formats/validity.py says. Parameters that stay float are finite; buffers
are neither NaN nor ∞ (masks are −∞). LOWBIT_UNCHECKED=1 lets all floats that are not stored ones
through.
"""

import os

from torch import nn

from lowbit.errors import InputError
from lowbit.formats.validity import faults, not_a_number, not_finite, unscaled
from lowbit.nn import QuantModule

UNCHECKED = "LOWBIT_UNCHECKED"


def check_numbers(model: nn.Module) -> None:
    """Raises InputError for the first tensor that holds a number which it cannot have."""
    lenient = os.environ.get(UNCHECKED, "0") not in ("", "0")
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            _check_stored(name, module)
        if not lenient:
            _check_floats(name, module)


def _check_stored(name: str, module: QuantModule) -> None:
    for own, dtype in module.own_stored().items():
        scale = module._buffers[own]
        assert scale is not None
        if dtype.is_floating_point and (told := unscaled(scale)):
            raise InputError(f"stored tensor {name}.{own} {told}")
    if module.tied_to is None:
        tensors = {own: t for own, t in module._buffers.items() if t is not None}
        for own, told in faults(module.layout, tensors, module.columns):
            raise InputError(f"stored tensor {name}.{own} {told}")


def _check_floats(name: str, module: nn.Module) -> None:
    stored = module.saved() if isinstance(module, QuantModule) else {}
    for held, wrong in ((module._parameters, not_finite), (module._buffers, not_a_number)):
        for own, tensor in held.items():
            if tensor is None or own in stored or tensor.is_meta or not tensor.is_floating_point():
                continue
            if told := wrong(tensor):
                raise InputError(
                    f"{name}.{own} {told}, with which a model computes nothing"
                    f" ({UNCHECKED}=1 lets it through)"
                )
