"""The signature of a call: the given arguments and their kinds. A captured graph is valid for
one."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The argument with the attention mask.
MASK = "attention_mask"
# Types of other arguments that can be compared; calls with other types run the model itself.
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Signature:
    """A signature. tensors: name, dtype and sizes; batch and length are free. others: plain
    values."""

    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    others: tuple[tuple[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        tensors = [[name, str(dtype)[6:], list(sizes)] for name, dtype, sizes in self.tensors]
        return {"tensors": tensors, "others": [list(each) for each in self.others]}

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> "Signature":
        tensors = []
        for name, dtype, sizes in stored["tensors"]:
            found = getattr(torch, dtype)
            if not isinstance(found, torch.dtype):
                raise ValueError(f"{dtype} is not a dtype")
            tensors.append((str(name), found, tuple(map(int, sizes))))
        others = tuple((str(name), value) for name, value in stored["others"])
        if not all(isinstance(value, PLAIN) for _, value in others):
            raise ValueError("an argument is not a plain value")
        return cls(tuple(tensors), others)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(name for name, *_ in self.tensors), *(name for name, _ in self.others))


def bound(forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The given arguments of a call, by name."""
    if not args:
        return {name: value for name, value in kwargs.items() if value is not None}
    names = [
        p.name
        for p in inspect.signature(forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    if len(args) > len(names):
        raise TypeError(f"{len(args)} arguments for {len(names)} parameters")
    return {name: value for name, value in given.items() if value is not None}


def signature(arguments: Mapping[str, Any]) -> Signature | str:
    """The signature of a call, or the reason why no program can serve it."""
    tensors, others = [], []
    for name, value in sorted(arguments.items()):
        if isinstance(value, Tensor):
            if not value.is_cpu:
                return f"{name} is on {value.device}"
            if value.is_floating_point() and value.dtype is not torch.float32:
                return f"{name} is {value.dtype}"
            if value.dim() == 0 or value.numel() == 0:
                return f"{name} {list(value.shape)} is empty"
            free = 1 if value.is_floating_point() else min(2, value.dim())
            tensors.append((name, value.dtype, tuple(value.shape[free:])))
        elif isinstance(value, PLAIN):
            others.append((name, value))
        else:
            return f"{name} is a {type(value).__name__}"
    return Signature(tuple(tensors), tuple(others)) if tensors else "no argument is a tensor"
