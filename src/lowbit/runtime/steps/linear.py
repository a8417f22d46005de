"""Quantized linear layers, and the nonlinearity after one."""

from collections.abc import Callable, Set
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from lowbit.kernels.linear import product
from lowbit.nn import QuantLinear
from lowbit.runtime.capture import LINEAR
from lowbit.runtime.lowering import Lowering
from lowbit.runtime.operations import Linear
from lowbit.runtime.values import Columns, UnservedError, Value

aten = torch.ops.aten


def _linear(to: Lowering, node: fx.Node) -> Value:
    x, name, columns = node.args
    layer = to.captured.modules[str(name)]
    assert isinstance(layer, QuantLinear)
    if to.fits(node) != columns:
        raise UnservedError(f"{name} gives other columns")
    call = layer.packed_call()
    if call is None or len(call.product.parts) != 1:
        raise UnservedError(f"{name} is not one native product")
    if call.bias is not None and call.bias.dtype is not torch.float32:
        raise UnservedError(f"the bias of {name} is {call.bias.dtype}")
    read, y = to.matrix(x), to.new(layer.out_features)
    to.operations.append(Linear((str(name),), (layer,), (call,), read.number, (y.number,)))
    return y


def applied(to: Lowering, x: fx.Node, how: str, readers: Set[fx.Node]) -> Value:
    """A nonlinearity of x, fused into the linear layer that computes x if only `readers` read x."""
    value = to.value(x)
    if isinstance(value, Columns) and value.nonlinearity == "identity":
        return replace(value, nonlinearity=how)
    matrix = to.matrix(x)
    last = to.operations[-1]
    if isinstance(last, Linear) and last.ys == (matrix.number,) and readers >= x.users.keys():
        call, layer = last.calls[0], last.layers[0]
        after = product(call.weight.layout, layer.activations, how, layer.static_input())
        if after is not None and call.product.nonlinearity == "identity":
            call = replace(call, product=after)
            to.operations[-1] = replace(last, calls=(call,))
            return matrix
    return Columns(matrix, 0, matrix.columns, how)


def _nonlinear(name: str) -> Callable[[Lowering, fx.Node], Value]:
    def handle(to: Lowering, node: fx.Node) -> Value:
        x = node.args[0]
        assert isinstance(x, fx.Node)
        if x not in to.values:
            raise UnservedError("its input is computed by torch")
        how = f"{name}_tanh" if node.kwargs.get("approximate") == "tanh" else name
        return applied(to, x, how, {node})

    return handle


HANDLERS: dict[Any, Callable[[Lowering, fx.Node], Value]] = {
    LINEAR: _linear,
    aten.gelu.default: _nonlinear("gelu"),
    aten.relu.default: _nonlinear("relu"),
    aten.silu.default: _nonlinear("silu"),
}
