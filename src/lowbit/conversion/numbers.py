"""Check the numbers of a model that was read from files.

Stored tensors must be valid by formats/validity.py. Float parameters must be finite. Buffers must
not be NaN or ∞ (masks may be −∞). LOWBIT_UNCHECKED=1 skips the check of float parameters and
buffers.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.formats import Layout
from lowbit.formats.validity import Test, not_a_number, not_finite, tests, unscaled
from lowbit.nn import QuantModule

UNCHECKED = "LOWBIT_UNCHECKED"
# Smaller tensors are checked together: a model has hundreds of them, and calls would dominate.
SMALL = 1 << 14
OVERFLOW = " (float16 ends at 65,504: load the model in bfloat16 or float32 if the file holds more)"

# The name of a tensor, the tensor, and its check.
Checked = tuple[str, Tensor, Test]
Modules = Sequence[tuple[str, nn.Module]]


def check_numbers(model: nn.Module) -> None:
    """Raises InputError for the first tensor with an invalid number."""
    lenient = os.environ.get(UNCHECKED, "0") not in ("", "0")
    modules = [*model.named_modules()]  # once: the traversal takes as long as the checks
    _refuse(_stored(modules), "stored tensor {} {}")
    if not lenient:
        told = f"{{}} {{}}, so the model cannot compute with it ({UNCHECKED}=1 lets it through)"
        _refuse(_floats(modules), told)


def _refuse(checked: Iterator[Checked], sentence: str) -> None:
    together: dict[tuple[object, ...], list[Checked]] = {}
    for one in checked:
        name, tensor, test = one
        if tensor.numel() < SMALL and tensor.is_floating_point():
            together.setdefault((test, tensor.dtype, tensor.device), []).append(one)
        elif told := test(tensor):
            raise InputError(sentence.format(name, told))
    for small in together.values():
        test = small[0][2]
        if test(torch.cat([tensor.detach().flatten() for _, tensor, _ in small])):
            name, told = next((n, told) for n, tensor, _ in small if (told := test(tensor)))
            raise InputError(sentence.format(name, told))


def _stored(modules: Modules) -> Iterator[Checked]:
    for name, module in modules:
        if not isinstance(module, QuantModule):
            continue
        own = {n: unscaled for n, dtype in module.own_stored().items() if dtype.is_floating_point}
        weight = () if module.tied_to is not None else _tests(module.layout, module.columns)
        for stored, test in (*own.items(), *weight):
            tensor = module._buffers[stored]
            assert tensor is not None
            yield f"{name}.{stored}", tensor, test


@cache
def _tests(layout: Layout, columns: int) -> tuple[tuple[str, Test], ...]:
    """The checks of a layout, the same for all layers with it."""
    return tuple(tests(layout, columns))


def _explained(test: Test) -> Test:
    """The test, which says of float16 why a number that was finite in the file is not."""

    def told(tensor: Tensor) -> str | None:
        found = test(tensor)
        return found + OVERFLOW if found and tensor.dtype == torch.float16 else found

    return told


_finite, _number = _explained(not_finite), _explained(not_a_number)


def _floats(modules: Modules) -> Iterator[Checked]:
    for name, module in modules:
        held: list[tuple[Mapping[str, Tensor | None], Test]] = [(module._parameters, _finite)]
        if not isinstance(module, QuantModule):  # buffers of a QuantModule are its stored tensors
            held.append((module._buffers, _number))
        for tensors, test in held:
            for own, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point() and not tensor.is_meta:
                    yield f"{name}.{own}".lstrip("."), tensor, test
