"""Sums, and the layer norms that follow them."""

from typing import Any

import torch
from torch import fx

from lowbit.runtime.lowering import Lowering
from lowbit.runtime.operations import Normalize
from lowbit.runtime.steps.attention import masked
from lowbit.runtime.steps.rotary import added
from lowbit.runtime.values import Rotation, Scores, Sum, UnservedError, Value

aten = torch.ops.aten


def _add(to: Lowering, node: fx.Node) -> Value:
    first = to.value(node.args[0])
    if isinstance(first, Scores):
        return masked(to, node)
    if isinstance(first, Rotation):
        return added(to, node)
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        raise UnservedError("a sum with a factor")
    if not any(read in to.values for read in node.all_input_nodes):
        raise UnservedError("torch adds what it has computed")
    to.fits(node)
    a, b = map(to.matrix, node.args)
    if a.columns != b.columns:
        raise UnservedError("terms of other columns")
    return Sum(a, b)


def _layer_norm(to: Lowering, node: fx.Node) -> Value:
    args: list[Any] = list(node.args)
    x, shape, *rest = args
    weight, bias = (to.tensor(t) for t in (*rest, None, None)[:2])
    epsilon = float(rest[2]) if len(rest) > 2 else 1e-5
    columns = to.fits(node)
    if list(shape) != [columns]:
        raise UnservedError(f"a layer norm over {shape}")
    value = to.value(x)
    residual, kept = None, None
    if isinstance(value, Sum):
        read, residual = value.a, value.b.number
        if len(x.users) > 1:
            sum = to.new(columns)
            to.values[x] = sum
            kept = sum.number
    else:
        read = to.matrix(x)
    y = to.new(columns)
    to.operations.append(
        Normalize(weight, bias, columns, epsilon, read.number, residual, kept, y.number)
    )
    return y


HANDLERS = {aten.add.Tensor: _add, aten.layer_norm.default: _layer_norm}
