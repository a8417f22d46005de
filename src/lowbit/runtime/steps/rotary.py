"""Rotary embeddings: x cos + (-second half of x, first half of x) sin, as models write them."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from lowbit.runtime.capture import kind
from lowbit.runtime.lowering import Lowering
from lowbit.runtime.operations import Rotate
from lowbit.runtime.steps.views import same
from lowbit.runtime.values import Heads, Matrix, Rotation, UnservedError, Value

aten = torch.ops.aten


def _half(to: Lowering, node: fx.Node) -> Value:
    """One half of the numbers of heads; other supported slices take the whole."""
    value, args = to.value(node.args[0]), list(node.args[1:])
    if not isinstance(value, Heads) or not value.turned or args[:1] not in ([3], [-1]):
        return same(to, node)
    start, end = (args[1:] + [None, None])[:2]
    half = value.size // 2
    if len(args) > 3 or value.size % 2 or (start or 0, end) not in ((0, half), *_from(half)):
        raise UnservedError(f"{node.name} is not one half of the numbers of heads")
    return Rotation(value, half=0 if (start or 0) == 0 else 1)


def _from(half: int) -> tuple[tuple[int, Any], ...]:
    """The start of a slice from `half` on, as the graph writes it."""
    return (half, None), (half, 2 * half), (half, torch.iinfo(torch.int64).max)


def _negative(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    if not isinstance(value, Rotation) or value.half != 1:
        raise UnservedError("a negation outside a rotary embedding")
    return replace(value, negative=True)


def _joined(to: Lowering, node: fx.Node) -> Value:
    args: list[Any] = [*node.args, 0]
    high, low = map(to.value, args[0]) if len(args[0]) == 2 else (None, None)
    if (
        args[1] not in (3, -1)
        or not isinstance(high, Rotation)
        or low != Rotation(high.heads, half=0)
        or high != Rotation(high.heads, half=1, negative=True)
    ):
        raise UnservedError("a concatenation outside a rotary embedding")
    return Rotation(high.heads, swapped=True)


def multiplied(to: Lowering, x: fx.Node, by: fx.Node) -> Value:
    """Heads, or swapped heads, times cosines or sines [batch or 1, 1, length, size]."""
    value = to.value(x)
    if by in to.late:
        raise UnservedError(f"{by.name} is computed later")
    if isinstance(value, Heads) and value.turned and value.by == 1:
        return Rotation(value, by=by)
    if isinstance(value, Rotation) and value.swapped and value.by is None:
        return replace(value, by=by)
    raise UnservedError(f"{x.name} times {by.name} is not a part of a rotary embedding")


def added(to: Lowering, node: fx.Node) -> Value:
    """The sum of the cosine and sine terms: the embedding."""
    straight, swapped = (to.value(read) for read in node.args[:2])
    if (
        not isinstance(straight, Rotation)
        or not isinstance(swapped, Rotation)
        or straight.heads != swapped.heads
        or straight.swapped
        or not swapped.swapped
    ):
        raise UnservedError(f"{node.name} is not a rotary embedding")
    heads = straight.heads
    cos, sin = (_by_token(to, each.by, heads.size) for each in (straight, swapped))
    y = to.new(heads.heads * heads.size)
    to.operations.append(
        Rotate(
            heads.matrix.number,
            heads.first,
            heads.heads,
            heads.size,
            cos.number,
            sin.number,
            y.number,
        )
    )
    return Heads(y, heads.heads, heads.size, True)


def _by_token(to: Lowering, node: fx.Node | None, size: int) -> Matrix:
    """A tensor [batch or 1, 1, length, size] as an input of the program, one row per token."""
    found = None if node is None else kind(node)
    if node is None or found is None or (*found.sizes[1:2], *found.sizes[3:]) != ("1", str(size)):
        raise UnservedError("a rotation by other than a number for each token and size")
    if node not in to.squeezed:
        with to.captured.graph.inserting_after(node):
            squeezed = to.captured.graph.call_function(aten.squeeze.dim, (node, 1))
        squeezed.meta["kind"] = replace(found, sizes=(found.sizes[0], *found.sizes[2:]))
        to.squeezed[node] = squeezed
    return to.matrix(to.squeezed[node])


HANDLERS = {
    aten.slice.Tensor: _half,
    aten.neg.default: _negative,
    aten.cat.default: _joined,
}
