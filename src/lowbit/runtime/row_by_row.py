"""Steps that torch can compute on the rows of a program, because each result depends on one row:
pointwise operators, linear layers, and means over the columns."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from lowbit.runtime.capture import LINEAR
from lowbit.runtime.values import UnservedError

aten = torch.ops.aten
OVER_COLUMNS = ([-1], [2])


def row_by_row(
    node: fx.Node, modules: Mapping[str, nn.Module], why: str
) -> tuple[str, Callable[..., Tensor], list[Any]]:
    """A step's name, and the function and arguments that compute it on rows. Raises UnservedError,
    with `why`, for all other steps. modules: the quantized modules by name."""
    target: Any = node.target
    arguments = list(node.args)
    if target is LINEAR:
        x, name, _ = arguments
        return str(name), modules[str(name)], [x]
    if any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        raise UnservedError(why)
    if target is aten.mean.dim and arguments[1] in OVER_COLUMNS and arguments[2:] == [True]:
        arguments[1] = [-1]
    elif target is not aten.linear.default and not pointwise(target):
        raise UnservedError(why)
    return target.__name__, target, arguments


def pointwise(target: Any) -> bool:
    """Whether an operator is pointwise."""
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.pointwise in target.tags
        and not target._schema.is_mutable
    )


def same_for_all(tensor: Tensor, name: str) -> Tensor:
    """A parameter [1, …, columns], reshaped to broadcast over rows [tokens, columns]."""
    shape = list(tensor.shape)
    while len(shape) > 2 and shape[0] == 1:
        shape.pop(0)
    if len(shape) > 2:
        raise UnservedError(f"{name} {list(tensor.shape)} is not the same for all rows")
    return tensor.view(shape)
