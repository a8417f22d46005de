"""Sums, and the norms that follow them: layer norms and RMS norms, as one operator or several."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from lowbit.runtime.lowering import Lowering
from lowbit.runtime.row_by_row import OVER_COLUMNS
from lowbit.runtime.steps.attention import masked
from lowbit.runtime.steps.rotary import added
from lowbit.runtime.values import (
    Matrix,
    MeanSquare,
    Rotation,
    Scores,
    Squares,
    Sum,
    UnservedError,
    Value,
)

aten = torch.ops.aten


def _add(to: Lowering, node: fx.Node) -> Value:
    first = to.value(node.args[0])
    if isinstance(first, Scores):
        return masked(to, node)
    if isinstance(first, Rotation):
        return added(to, node)
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        raise UnservedError("a sum with a factor")
    if isinstance(first, MeanSquare) and isinstance(node.args[1], float):
        return replace(first, epsilon=first.epsilon + node.args[1])
    if not any(read in to.values for read in node.all_input_nodes):
        raise UnservedError("torch adds what it has computed")
    to.fits(node)
    a, b = map(to.matrix, node.args)
    if a.columns != b.columns:
        raise UnservedError("terms of other columns")
    return Sum(a, b)


def _summed(to: Lowering, node: Any) -> Matrix | Sum:
    value = to.value(node)
    return value if isinstance(value, Sum) else to.matrix(node)


def _layer_norm(to: Lowering, node: fx.Node) -> Value:
    args: list[Any] = list(node.args)
    x, shape, *rest = args
    weight, bias = (to.tensor(t) for t in (*rest, None, None)[:2])
    epsilon = float(rest[2]) if len(rest) > 2 else 1e-5
    if list(shape) != [to.fits(node)]:
        raise UnservedError(f"a layer norm over {shape}")
    return to.normalize(_summed(to, x), weight, bias, epsilon, centered=True)


def _rms_norm(to: Lowering, node: fx.Node) -> Value:
    args: list[Any] = [*node.args, None, None]
    x, shape, weight, epsilon = args[:4]
    if list(shape) != [to.fits(node)]:
        raise UnservedError(f"an RMS norm over {shape}")
    epsilon = torch.finfo(torch.float32).eps if epsilon is None else float(epsilon)
    return to.normalize(_summed(to, x), to.tensor(weight), None, epsilon, centered=False)


def _power(to: Lowering, node: fx.Node) -> Value:
    if node.args[1] != 2:
        raise UnservedError("a power other than the square")
    to.fits(node)
    return Squares(_summed(to, node.args[0]))


def _mean(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    if not isinstance(value, Squares) or node.args[1] not in OVER_COLUMNS:
        raise UnservedError("a mean of other than squares")
    if node.args[2:] != (True,) or node.kwargs:
        raise UnservedError("the mean is not a column")
    return MeanSquare(value.of)


def _inverse_root(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    if not isinstance(value, MeanSquare) or value.inverse_root:
        raise UnservedError("an inverse root of other than a mean square")
    return replace(value, inverse_root=True)


HANDLERS = {
    aten.add.Tensor: _add,
    aten.layer_norm.default: _layer_norm,
    aten.mean.dim: _mean,
    aten.pow.Tensor_Scalar: _power,
    aten.rms_norm.default: _rms_norm,
    aten.rsqrt.default: _inverse_root,
}
