"""Attention: one operator of torch or lowbit, or separate products and a softmax."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from lowbit.kernels import ops  # noqa: F401  registers the operator
from lowbit.runtime.lowering import Lowering
from lowbit.runtime.operations import Attention
from lowbit.runtime.values import Heads, Keys, Matrix, Scaled, Scores, UnservedError, Value

aten = torch.ops.aten


def _sdpa(to: Lowering, node: fx.Node) -> Value:
    query, key, value = (to.heads(read) for read in node.args[:3])
    given: dict[str, Any] = dict(zip(("mask", "dropout", "causal"), node.args[3:], strict=False))
    mask, dropout = given.get("mask"), given.get("dropout", 0.0)
    causal = given.get("causal", False)
    scale = node.kwargs.get("scale")
    if dropout:
        raise UnservedError("dropout belongs to training")
    return _attended(to, query, key, value, _masks(mask), bool(causal), scale)


def _own(to: Lowering, node: fx.Node) -> Value:
    query, key, value = (to.heads(read) for read in node.args[:3])
    mask, scale, causal, _, cap, sinks = (*node.args[3:], None, None)[:6]
    if cap is not None or sinks is not None:
        raise UnservedError("an attention with a soft cap or sinks")
    y = _attended(to, query, key, value, _masks(mask), bool(causal), scale)
    return replace(y, turned=False)


def _masks(mask: Any) -> tuple[fx.Node, ...]:
    if mask is None:
        return ()
    if not isinstance(mask, fx.Node):
        raise UnservedError(f"the mask {mask} is not a tensor")
    return (mask,)


def _attended(
    to: Lowering,
    query: Heads,
    key: Heads,
    value: Heads,
    masks: tuple[fx.Node, ...],
    causal: bool,
    scale: Any,
) -> Heads:
    if query.size != key.size or key.heads != value.heads or query.heads % key.heads:
        raise UnservedError("queries, keys and values of different heads")
    if value.by != 1:
        raise UnservedError("values are scaled")
    scale = query.by * key.by * (query.size**-0.5 if scale is None else float(scale))
    sight = to.seen(masks, causal)
    to.hides_padding = True
    y = to.new(query.heads * value.size)
    to.operations.append(
        Attention(
            query.matrix.number,
            key.matrix.number,
            value.matrix.number,
            y.number,
            query.heads,
            key.heads,
            query.size,
            value.size,
            scale,
            sight.causal,
            sight.window,
            None if sight.bias is None else to.bias(sight.bias, query.heads),
            (query.first, key.first, value.first),
        )
    )
    return Heads(y, query.heads, value.size, True)


def _matmul(to: Lowering, node: fx.Node) -> Value:
    a, b = (to.value(read) for read in node.args[:2])
    if isinstance(a, Heads) and a.turned and isinstance(b, Keys):
        return Scores(a, b.heads)
    if isinstance(a, Scores) and a.weights and isinstance(b, Heads) and b.turned:
        return _attended(to, a.query, a.key, b, a.masks, False, a.scale)
    raise UnservedError(f"{node.name} is not a product of an attention")


def _scores(to: Lowering, node: fx.Node) -> Scores:
    value = to.value(node.args[0])
    if not isinstance(value, Scores) or value.weights:
        raise UnservedError(f"{node.target} is not applied to scores")
    return value


def scaled(to: Lowering, node: fx.Node) -> Value:
    value, by = to.value(node.args[0]), node.args[1]
    if node.target is aten.mul.Tensor and isinstance(by, int | float):
        if isinstance(value, Matrix):
            return Scaled(value, float(by))
        if isinstance(value, Heads):
            return replace(value, by=value.by * by)
    value = _scores(to, node)
    if not isinstance(by, int | float) or value.masks:
        raise UnservedError("scores are scaled by a tensor, or after their mask")
    factor = 1 / by if node.target is aten.div.Tensor else by
    return replace(value, scale=value.scale * factor)


def masked(to: Lowering, node: fx.Node) -> Value:
    value, mask = _scores(to, node), node.args[1]
    if not isinstance(mask, fx.Node) or node.kwargs:
        raise UnservedError("the value added to the scores is not a mask")
    return replace(value, masks=(*value.masks, mask))


def _softmax(to: Lowering, node: fx.Node) -> Value:
    if node.args[1] not in (-1, 3):
        raise UnservedError("a softmax over other than keys")
    return replace(_scores(to, node), weights=True)


HANDLERS = {
    aten.scaled_dot_product_attention.default: _sdpa,
    torch.ops.lowbit.attention.default: _own,
    aten.matmul.default: _matmul,
    aten.div.Tensor: scaled,
    aten.add_.Tensor: masked,
    aten.softmax.int: _softmax,
}
