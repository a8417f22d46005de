"""Products: scales of queries and scores, rotary embeddings, and gated feed-forward layers."""

import torch
from torch import fx

from lowbit.runtime.lowering import Lowering
from lowbit.runtime.operations import Gate
from lowbit.runtime.steps import attention, rotary
from lowbit.runtime.values import Columns, Heads, Rotation, UnservedError, Value

aten = torch.ops.aten


def _product(to: Lowering, node: fx.Node) -> Value:
    a, b = node.args[0], node.args[1]
    value = to.value(a)
    if isinstance(value, Columns):
        return _gated(to, value, to.value(b))
    if isinstance(value, Heads | Rotation) and isinstance(b, fx.Node):
        return rotary.multiplied(to, node)
    return attention.scaled(to, node)


def _gated(to: Lowering, a: Columns, b: Value | None) -> Value:
    if not isinstance(b, Columns) or a.matrix != b.matrix or a.columns != b.columns:
        raise UnservedError("a product of columns of two matrices")
    if b.nonlinearity != "identity":
        a, b = b, a
    if b.nonlinearity != "identity":
        raise UnservedError("a product of two nonlinearities")
    y = to.new(a.columns)
    to.operations.append(
        Gate(a.matrix.number, a.first, b.first, a.columns, a.nonlinearity, y.number)
    )
    return y


HANDLERS = {aten.mul.Tensor: _product}
