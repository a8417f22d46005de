"""What moves no number: heads are cut from a matrix and turned."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from lowbit.runtime.lowering import Lowering
from lowbit.runtime.values import Heads, Keys, Matrix, Scaled, Sum, UnservedError, Value

aten = torch.ops.aten


def _same(to: Lowering, node: fx.Node) -> Value:
    """What gives what it is given."""
    read: Any = node.args[0]
    if not isinstance(read, fx.Node) or read not in to.values:
        raise UnservedError("torch goes on with what it has computed")
    before, after = read.meta["val"], node.meta["val"]
    if to.shape(read) != to.shape(node) or before.dtype != after.dtype:
        raise UnservedError(f"{node.target} changes its input")
    return to.values[read]


def _dropout(to: Lowering, node: fx.Node) -> Value:
    if node.args[2] if len(node.args) > 2 else node.kwargs.get("train"):
        raise UnservedError("dropout belongs to training")
    return _same(to, node)


def _shaped(to: Lowering, node: fx.Node) -> Value:
    read: Any = node.args[0]
    value = to.value(read)
    if isinstance(value, Sum):
        value = to.matrix(read)
    shape = to.shape(node)
    if to.tokens is None or value is None:
        raise UnservedError("torch goes on with what it has computed")
    if shape == to.shape(read):
        return value
    if shape[:2] == to.tokens and shape[-1].isdigit():
        if isinstance(value, Matrix) and len(shape) == 4 and shape[2].isdigit():
            return Heads(value, int(shape[2]), int(shape[3]), False)
        if isinstance(value, Scaled) and len(shape) == 4 and shape[2].isdigit():
            return Heads(value.matrix, int(shape[2]), int(shape[3]), False, value.by)
        if isinstance(value, Heads) and not value.turned and value.by == 1 and len(shape) == 3:
            return value.matrix
    raise UnservedError(f"{node.target} to {list(shape)} does more than cut heads")


def _turned(to: Lowering, node: fx.Node) -> Value:
    value, by = to.value(node.args[0]), list(node.args[1:])
    if isinstance(value, Heads) and by in ([1, 2], [2, 1], [[0, 2, 1, 3]]):
        return replace(value, turned=not value.turned)
    if isinstance(value, Heads) and value.turned and by in ([2, 3], [3, 2], [-1, -2], [-2, -1]):
        return Keys(value)
    raise UnservedError(f"{node.target} does more than turn heads")


HANDLERS = {
    **dict.fromkeys(
        (
            aten.alias.default,
            aten.clone.default,
            aten.contiguous.default,
            aten.expand.default,
            aten.slice.Tensor,
            aten.to.device,
            aten.to.dtype,
            aten.to.dtype_layout,
        ),
        _same,
    ),
    aten.dropout.default: _dropout,
    aten.view.default: _shaped,
    aten.reshape.default: _shaped,
    aten.transpose.int: _turned,
    aten.permute.default: _turned,
}
