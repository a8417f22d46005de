"""Handlers that lower the operators of a captured graph. A handler takes the lowering so far and a
node, and returns the node's value. It raises UnservedError if torch must compute the node."""

from collections.abc import Callable
from typing import Any

from torch import fx

from lowbit.runtime.lowering import Lowering
from lowbit.runtime.steps import attention, gates, linear, lookup, norms, rotary, views
from lowbit.runtime.values import Value

HANDLERS: dict[Any, Callable[[Lowering, fx.Node], Value]] = {
    **attention.HANDLERS,
    **gates.HANDLERS,
    **linear.HANDLERS,
    **lookup.HANDLERS,
    **norms.HANDLERS,
    **rotary.HANDLERS,
    **views.HANDLERS,
}
