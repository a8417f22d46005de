"""A part of a graph as a function that torch runs."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from lowbit.runtime.capture import LINEAR, ROWS


def part(
    module: fx.GraphModule,
    inputs: Sequence[fx.Node],
    outputs: Sequence[Any],
    modules: Mapping[str, nn.Module],
) -> Callable[..., tuple[Any, ...]]:
    """A function from values of `inputs` to values of `outputs`, some of which may be constants.
    The part may read only `inputs`, parameters and buffers. modules: the quantized modules by name,
    for the operators that replace them."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    held: dict[str, Any] = {}
    for number, node in enumerate(inputs):
        copies[node] = graph.placeholder(f"input_{number}")
    wanted = set(above((n for n in outputs if isinstance(n, fx.Node)), set(inputs)))
    for node in module.graph.nodes:
        if node not in wanted or node in copies:
            continue
        if node.target in (LINEAR, ROWS):
            name = f"quantized_{len(held)}"
            held[name] = modules[node.args[1]]
            copies[node] = graph.call_module(name, (copies[node.args[0]],))
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "get_attr":
            held[node.target] = operator.attrgetter(node.target)(module)
    graph.output(tuple(copies.get(value, value) for value in outputs))
    made: Callable[..., tuple[Any, ...]] = fx.GraphModule(held, graph)
    return made


def above(nodes: Iterable[fx.Node], known: set[fx.Node]) -> list[fx.Node]:
    """`nodes` and all nodes that they depend on, except `known` ones."""
    found: dict[fx.Node, None] = {}
    open = list(nodes)
    while open:
        node = open.pop()
        if node in found:
            continue
        found[node] = None
        if node not in known:
            open += node.all_input_nodes
    return list(found)
