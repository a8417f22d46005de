"""Small elementwise operations by csrc/elementwise.h, with the bits of torch's operators."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.kernels.native import module
from lowbit.kernels.sequence import MOST_NUMBERS

DIMENSIONS = 4


@dataclass(frozen=True, eq=False)
class Operation:
    """y = op(a, b), float32 and broadcast; op as csrc/elementwise.h names it."""

    op: str
    y: Tensor
    a: Tensor
    b: Tensor

    def add_to(self, native: Any) -> None:
        assert module is not None
        steps = _steps(self)
        assert steps is not None
        sizes, *of = steps
        places: list[Any] = []
        for t, own in zip((self.y, self.a, self.b), of, strict=True):
            places += t.data_ptr(), own
        native.elementwise(getattr(module.ElementwiseOp, self.op), sizes, *places)


def operations(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor
) -> list[Operation]:
    """The operations equal to function(*args, **kwargs, out=y); an empty list if native code has
    none."""
    if module is None or y.numel() > MOST_NUMBERS:
        return []
    made = (_joined if function is torch.cat else _one)(function, args, kwargs, y)
    served = all(_served(t) for each in made for t in (each.y, each.a, each.b))
    return made if served and all(_steps(each) for each in made) else []


def _joined(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor
) -> list[Operation]:
    if not args or kwargs.keys() - {"dim"} or any(t.dim() != y.dim() for t in args[0]):
        return []
    tensors, *dims = *args, *kwargs.values()
    dim, start, copies = dims[0] if dims else 0, 0, []
    for t in tensors:
        part = y.narrow(dim, start, t.shape[dim])
        copies.append(Operation("copy", part, t, t))
        start += t.shape[dim]
    return copies


def _one(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor
) -> list[Operation]:
    numbers = [_number(arg) for arg in args]
    if kwargs or any(number is None for number in numbers):
        return []
    match function, numbers:
        case torch.add, [Tensor() as a, Tensor() as b]:
            return [Operation("add", y, a, b)]
        case torch.mul, [Tensor() as a, Tensor() as b]:
            return [Operation("multiply", y, a, b)]
        case torch.pow, [Tensor() as a, _] if not isinstance(args[1], Tensor) and args[1] == 2:
            return [Operation("multiply", y, a, a)]
        case torch.neg, [Tensor() as a]:
            return [Operation("negate", y, a, a)]
        case torch.rsqrt, [Tensor() as a]:
            return [Operation("inverse_root", y, a, a)]
    return []


def _number(arg: Any) -> Tensor | None:
    """An operand: a tensor, or a number rounded to float32, as torch does."""
    if isinstance(arg, Tensor):
        return arg
    return torch.tensor(float(arg), dtype=torch.float32) if type(arg) in (int, float) else None


def _served(t: Tensor) -> bool:
    return t.is_cpu and t.dtype is torch.float32


def _steps(each: Operation) -> list[list[int]] | None:
    """Sizes, and the steps of y, a and b in memory, in DIMENSIONS dimensions; None if they need
    more."""
    shape = each.y.shape
    operands = (each.y, each.a.expand(shape), each.b.expand(shape))
    kept: list[tuple[int, ...]] = []  # each: a size and three steps
    for size, *steps in zip(shape, *(t.stride() for t in operands), strict=True):
        if size == 1:
            continue
        if kept and [size * own for own in steps] == list(kept[-1][1:]):
            # Merge this dimension with the previous one.
            kept[-1] = kept[-1][0] * size, *steps
        else:
            kept.append((size, *steps))
    if len(kept) > DIMENSIONS:
        return None
    padded = [(1, 0, 0, 0)] * (DIMENSIONS - len(kept)) + kept
    return [list(column) for column in zip(*padded, strict=True)]
