"""Lower the part of a captured graph that computes on tokens to a program on rows.

Lowering visits the values of the graph in order. A float tensor [batch, length, columns] becomes a
matrix with one row per token; attention heads, also transposed ones, are views of that matrix.
torch computes the steps before (ids, masks, patches of images) and after (poolers, classifiers),
and all steps before and after that no operation here computes. `Lowered.left` lists these steps
with reasons.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lowbit.runtime.capture import Captured
from lowbit.runtime.lowering import Lowering
from lowbit.runtime.operations import Attention, Linear, Operation
from lowbit.runtime.part import part
from lowbit.runtime.program import Program
from lowbit.runtime.signature import MASK
from lowbit.runtime.steps import HANDLERS
from lowbit.runtime.values import Matrix, Sum, UnservedError

SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True, eq=False)
class Lowered:
    """before: from the tensors of a call to the ids of lookups [batch or 1, length] and the float
    inputs [batch or 1, length, columns] of the program. after: from those tensors and `ends`, the
    program's results by number [batch, length, columns], to what the model returns. biases: see
    `Sight`, and for how many heads. left: steps that torch computes before or after, and why."""

    program: Program
    before: Callable[..., tuple[Tensor, ...]]
    after: Callable[..., tuple[Any, ...]]
    ends: tuple[int, ...]
    lookups: int
    biases: tuple[tuple[Callable[..., tuple[Tensor]], int], ...]
    left: Mapping[str, str]


def lower(captured: Captured, limit: int) -> Lowered:
    """Lower a graph. limit: the most tokens of a sequence. Raises UnservedError if nothing is left
    for a program."""
    to, left = Lowering(captured, limit), dict[str, str]()
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    for node in list(captured.graph.nodes):
        if node.op == "call_function":
            _follow(to, node, left)
    first = next(iter(left.values()), None)
    if not any(isinstance(op, Attention) for op in to.operations):
        raise UnservedError(first or "it has no attention over tokens")
    if MASK in to.arguments and not to.hides_padding:
        raise UnservedError(first or "no attention hides the padding")
    ends = _ends(to, output)
    if any(to.shape(node)[0] == "1" for node in ends):
        raise UnservedError("what is the same for all sequences is read after the program")
    numbers = [to.matrix(node).number for node in ends]
    results = tuple(dict.fromkeys(numbers))
    tensors, inputs = list(to.arguments.values()), list(to.inputs)
    operations = tuple(_together(to.operations))
    taken = tuple(to.inputs[node].number for node in inputs)
    module, modules = captured.module, captured.modules
    return Lowered(
        Program(operations, tuple(to.columns), taken, results),
        part(module, tensors, to.ids + inputs, modules),
        part(module, tensors + ends, list(pytree.tree_leaves(output.args)), modules),
        tuple(results.index(number) for number in numbers),
        len(to.ids),
        tuple(to.biases),
        left,
    )


def _follow(to: Lowering, node: fx.Node, left: dict[str, str]) -> None:
    handler = HANDLERS.get(node.target)
    # Compute every size from the model's arguments, not from intermediate tensors.
    if node.target is SIZE or not node.users:
        return
    if any(read in to.late for read in node.all_input_nodes):
        to.late.add(node)
        return
    try:
        if handler is None:
            raise UnservedError(f"{node.target} is not an operation of programs")
        to.values[node] = handler(to, node)
    except UnservedError as why:
        if not any(read in to.values for read in node.all_input_nodes):
            return
        try:
            to.values[node] = to.by_torch(node, str(why))
        except UnservedError as both:
            left[node.name] = str(both)
            to.late.add(node)
            if not any(isinstance(op, Attention) for op in to.operations):
                to.begin_again()


def _ends(to: Lowering, output: fx.Node) -> list[fx.Node]:
    """The nodes of matrices that torch reads after the program."""
    found: dict[fx.Node, None] = {}
    open = [output]
    seen: set[fx.Node] = set()
    while open:
        for read in open.pop().all_input_nodes:
            if isinstance(to.values.get(read), Matrix | Sum):
                found[read] = None
            elif read not in seen:
                seen.add(read)
                open.append(read)
    return list(found)


def _together(operations: list[Operation]) -> list[Operation]:
    """Join consecutive linear layers with the same input into one operation."""
    joined: list[Operation] = []
    for operation in operations:
        last = joined[-1] if joined else None
        if (
            isinstance(last, Linear)
            and isinstance(operation, Linear)
            and last.x == operation.x
            and last.calls[0].product.input_form == operation.calls[0].product.input_form
        ):
            joined[-1] = last.joined(operation)
        else:
            joined.append(operation)
    return joined
