"""By an operator of a captured graph: what it is to a program. A handler takes the lowering so far
and the node, and gives the node's value; it raises UnservedError for what torch has to compute."""

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
