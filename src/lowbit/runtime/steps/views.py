"""Views: operators that split a matrix into heads and transpose them, without a copy."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from lowbit.runtime.capture import kind
from lowbit.runtime.lowering import Lowering
from lowbit.runtime.values import (
    Columns,
    Heads,
    Keys,
    Matrix,
    Parts,
    Scaled,
    Sum,
    UnservedError,
    Value,
)

aten = torch.ops.aten


def same(to: Lowering, node: fx.Node) -> Value:
    """An operator that returns its argument."""
    read: Any = node.args[0]
    if not isinstance(read, fx.Node) or read not in to.values:
        raise UnservedError("its input is computed by torch")
    if kind(read) != kind(node):
        raise UnservedError(f"{node.target} changes its input")
    return to.values[read]


def _dropout(to: Lowering, node: fx.Node) -> Value:
    if node.args[2] if len(node.args) > 2 else node.kwargs.get("train"):
        raise UnservedError("dropout belongs to training")
    return same(to, node)


def _shaped(to: Lowering, node: fx.Node) -> Value:
    read: Any = node.args[0]
    value = to.value(read)
    if isinstance(value, Sum):
        value = to.matrix(read)
    shape = to.shape(node)
    if to.tokens is None or value is None:
        raise UnservedError("its input is computed by torch")
    if shape == to.shape(read):
        return value
    if shape[:2] == to.tokens and shape[-1].isdigit():
        if isinstance(value, Matrix) and len(shape) == 4 and shape[2].isdigit():
            return Heads(value, int(shape[2]), int(shape[3]), False)
        if isinstance(value, Scaled) and len(shape) == 4 and shape[2].isdigit():
            return Heads(value.matrix, int(shape[2]), int(shape[3]), False, value.by)
        if isinstance(value, Heads) and value.is_matrix and len(shape) == 3:
            return value.matrix
        if isinstance(value, Matrix) and len(shape) == 5 and all(n.isdigit() for n in shape[2:]):
            parts, heads, size = map(int, shape[2:])
            firsts = range(0, parts * heads * size, heads * size)
            return Parts(tuple(Heads(value, heads, size, False, first=first) for first in firsts))
    raise UnservedError(f"{node.target} to {list(shape)} does more than cut heads")


def _unbound(to: Lowering, node: fx.Node) -> Value:
    """Split a matrix into Q, K and V, along their dimension."""
    value, dim = to.value(node.args[0]), node.args[1] if len(node.args) > 1 else 0
    if not isinstance(value, Parts) or dim not in (2, -3):
        raise UnservedError(f"{node.target} does more than tell queries, keys and values apart")
    return value


def _chunked(to: Lowering, node: fx.Node) -> Value:
    args: list[Any] = [*node.args, 0]
    value, (count, dim) = to.value(args[0]), args[1:3]
    if not isinstance(value, Matrix) or dim not in (2, -1) or value.columns % count:
        raise UnservedError(f"{node.target} does more than cut columns")
    columns = value.columns // count
    firsts = range(0, value.columns, columns)
    return Parts(tuple(Columns(value, first, columns) for first in firsts))


def _taken(to: Lowering, node: fx.Node) -> Value:
    value, number = to.value(node.args[0]), node.args[1]
    if not isinstance(value, Parts) or not isinstance(number, int):
        raise UnservedError("torch takes one of several values")
    return value.values[number]


def _turned(to: Lowering, node: fx.Node) -> Value:
    value, by = to.value(node.args[0]), list(node.args[1:])
    if isinstance(value, Heads) and by in ([1, 2], [2, 1], [[0, 2, 1, 3]]):
        return replace(value, turned=not value.turned)
    if isinstance(value, Heads) and value.turned and by in ([2, 3], [3, 2], [-1, -2], [-2, -1]):
        return Keys(value)
    raise UnservedError(f"{node.target} does more than turn heads")


HANDLERS: dict[Any, Callable[[Lowering, fx.Node], Value]] = {
    **dict.fromkeys(
        (
            aten.alias.default,
            aten.clone.default,
            aten.contiguous.default,
            aten.expand.default,
            aten.to.device,
            aten.to.dtype,
            aten.to.dtype_layout,
        ),
        same,
    ),
    aten.dropout.default: _dropout,
    aten.view.default: _shaped,
    aten.reshape.default: _shaped,
    aten.unbind.int: _unbound,
    aten.chunk.default: _chunked,
    operator.getitem: _taken,
    aten.transpose.int: _turned,
    aten.permute.default: _turned,
}
