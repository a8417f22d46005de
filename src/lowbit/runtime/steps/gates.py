"""Products: scales of queries and scores, rotary embeddings, norms, and gated layers."""

import math

import torch
from torch import fx

from lowbit.runtime.lowering import Lowering
from lowbit.runtime.steps import attention, rotary
from lowbit.runtime.steps.linear import applied
from lowbit.runtime.values import (
    Columns,
    Heads,
    Logistic,
    MeanSquare,
    Rotation,
    Scaled,
    UnservedError,
    Unweighted,
    Value,
)

aten = torch.ops.aten
# x S(slope x), S the logistic function.
BY_SLOPE = {1.0: "silu", 1.702: "quick_gelu"}


def _logistic(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    if isinstance(value, Scaled):
        return Logistic(value.matrix, value.by)
    return Logistic(to.matrix(node.args[0]), 1.0)


def _product(to: Lowering, node: fx.Node) -> Value:
    """The product of two tensors in any order, or of a tensor and a number."""
    a, b = node.args[0], node.args[1]
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return attention.scaled(to, node)
    for first, second in ((a, b), (b, a)):
        x, by = to.value(first), to.value(second)
        if isinstance(x, Heads | Rotation) and by is None:
            return rotary.multiplied(to, first, second)
        if isinstance(by, Logistic) and x == by.matrix:
            return _by_logistic(to, node, first, second, by)
        if isinstance(by, MeanSquare) and by.inverse_root and x == by.of:
            return Unweighted(by.of, by.epsilon)
        if isinstance(x, Unweighted) and second.op == "get_attr":
            weight = to.tensor(second)
            assert weight is not None
            if weight.dim() == 1 and len(weight) == to.fits(node):
                return to.normalize(x.of, weight, None, x.epsilon, centered=False)
    gate, up = (_columns(to, read) for read in (a, b))
    if up.nonlinearity != "identity":
        gate, up = up, gate
    if up.nonlinearity != "identity" or gate.columns != up.columns:
        raise UnservedError("a product of two nonlinearities, or of other columns")
    return to.gate(gate, up)


def _by_logistic(
    to: Lowering, node: fx.Node, x: fx.Node, logistic: fx.Node, value: Logistic
) -> Value:
    found = (how for slope, how in BY_SLOPE.items() if math.isclose(slope, value.slope))
    how = next(found, None)
    if how is None:
        raise UnservedError(f"x times the logistic function of {value.slope} x")
    own = {node, logistic, *logistic.all_input_nodes}  # the consumers that are part of the function
    return applied(to, x, how, own)


def _columns(to: Lowering, node: fx.Node) -> Columns:
    value = to.value(node)
    if value is None:
        raise UnservedError(f"{node.name} is not computed by the program")
    if isinstance(value, Columns):
        return value
    matrix = to.matrix(node)
    return Columns(matrix, 0, matrix.columns)


HANDLERS = {aten.mul.Tensor: _product, aten.sigmoid.default: _logistic}
