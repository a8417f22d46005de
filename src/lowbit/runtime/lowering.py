"""The shared state of lowering (steps/): the values so far and the list of operations."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lowbit.runtime.capture import Captured, kind
from lowbit.runtime.masks import Sight, sight
from lowbit.runtime.operations import Add, ByTorch, Gate, Normalize, Operation
from lowbit.runtime.row_by_row import row_by_row, same_for_all
from lowbit.runtime.signature import MASK
from lowbit.runtime.values import Columns, Heads, Matrix, Sum, UnservedError, Unweighted, Value

aten = torch.ops.aten


class Lowering:
    """The state of lowering. limit: the most tokens of a sequence."""

    def __init__(self, captured: Captured, limit: int) -> None:
        self.captured, self.limit = captured, limit
        self.arguments = {
            node.meta["argument"]: node for node in captured.graph.nodes if node.op == "placeholder"
        }
        self.operations: list[Operation] = []
        self.columns: list[int] = []
        self.values: dict[fx.Node, Value] = {}
        self.late: set[fx.Node] = set()  # torch computes these after the program
        self.ids: list[fx.Node] = []
        self.inputs: dict[fx.Node, Matrix] = {}
        self.sights: dict[fx.Node, Sight | str] = {}
        self.sums: dict[tuple[fx.Node, ...], fx.Node] = {}
        self.squeezed: dict[fx.Node, fx.Node] = {}
        self.biases: list[tuple[Callable[..., tuple[Tensor]], int]] = []
        self.tokens: tuple[str, str] | None = None  # sizes of batch and length, as text
        self.hides_padding = False

    def begin_again(self) -> None:
        """Restart: torch computes all values visited so far, before the program."""
        self.operations.clear()
        self.columns.clear()
        self.values.clear()
        self.late.clear()
        self.ids.clear()
        self.inputs.clear()
        self.biases.clear()
        self.tokens = None

    def shape(self, node: fx.Node) -> tuple[str, ...]:
        """Sizes as text: a size that differs between calls is a name."""
        found = kind(node)
        return () if found is None else found.sizes

    def fits(self, node: fx.Node) -> int:
        """The columns of a float tensor [batch, length, columns] with one row per token."""
        found, shape = kind(node), self.shape(node)
        if found is None or len(shape) != 3 or found.dtype is not torch.float32:
            raise UnservedError(f"{node.name} is not a float32 tensor [batch, length, columns]")
        if not shape[2].isdigit():
            raise UnservedError(f"{node.name} {list(shape)} has no fixed number of columns")
        if self.tokens is None and shape[0] != "1":
            self.tokens = shape[0], shape[1]
        batch, length = self.tokens or ("", "")
        if shape[0] not in ("1", batch) or shape[1] != length:
            raise UnservedError(f"{node.name} {list(shape)} has other rows than its program")
        return int(shape[2])

    def new(self, columns: int) -> Matrix:
        self.columns.append(columns)
        return Matrix(len(self.columns) - 1, columns)

    def value(self, node: Any) -> Value | None:
        return self.values.get(node) if isinstance(node, fx.Node) else None

    def matrix(self, node: Any) -> Matrix:
        """The matrix of a node. If torch computed the node before, it becomes an input."""
        if not isinstance(node, fx.Node):
            raise UnservedError(f"{node} is not a tensor")
        value = self.values.get(node)
        if value is not None and not isinstance(value, Matrix):
            value = self.values[node] = self._made(node, value)
        if value is None:
            if node in self.late:
                raise UnservedError(f"{node.name} is computed later")
            value = self.inputs.get(node) or self.new(self.fits(node))
            self.inputs[node] = value
        return value

    def _made(self, node: fx.Node, value: Value) -> Matrix:
        """Add an operation for a value that no other operation has fused."""
        if isinstance(value, Sum):
            return self.add(value)
        if isinstance(value, Columns):
            return self.gate(value, None)
        if isinstance(value, Unweighted):
            return self.normalize(value.of, None, None, value.epsilon, centered=False)
        if isinstance(value, Heads) and value.is_matrix:
            return value.matrix
        return self.by_torch(node, "no native operation follows it")

    def by_torch(self, node: fx.Node, why: str) -> Matrix:
        """Add a step that native code lacks. Raises UnservedError if it is not row by row."""
        name, function, arguments = row_by_row(node, self.captured.modules, why)
        columns = self.fits(node)
        operands = tuple(map(self._operand, arguments))
        y = self.new(columns)
        self.operations.append(ByTorch(name, function, operands, node.kwargs, y.number, why))
        return y

    def _operand(self, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value.op != "get_attr":
            return self.matrix(value)
        tensor = self.tensor(value)
        assert tensor is not None
        return same_for_all(tensor, str(value.target))

    def add(self, value: Sum) -> Matrix:
        y = self.new(value.a.columns)
        self.operations.append(Add(value.a.number, value.b.number, y.number))
        return y

    def gate(self, a: Columns, b: Columns | None) -> Matrix:
        y = self.new(a.columns)
        gated = None if b is None else (b.matrix.number, b.first)
        at = a.matrix.number, a.first
        self.operations.append(Gate(at, gated, a.columns, a.nonlinearity, y.number))
        return y

    def normalize(
        self,
        of: Matrix | Sum,
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
        centered: bool,
    ) -> Matrix:
        """Add a norm of rows. A sum before it is kept if other nodes read it."""
        residual = kept = None
        if isinstance(of, Sum):
            read, residual = of.a, of.b.number
            there = [node for node, value in self.values.items() if value is of]
            if sum(len(node.users) for node in there) > 1:
                total = self.new(read.columns)
                self.values.update(dict.fromkeys(there, total))
                kept = total.number
        else:
            read = of
        y = self.new(read.columns)
        self.operations.append(
            Normalize(
                weight,
                bias,
                read.columns,
                epsilon,
                read.number,
                residual,
                kept,
                y.number,
                centered,
            )
        )
        return y

    def heads(self, node: Any) -> Heads:
        value = self.values.get(node)
        if not isinstance(value, Heads) or not value.turned:
            raise UnservedError(f"{node} is not [batch, heads, length, size]")
        return value

    def tensor(self, node: Any) -> Tensor | None:
        """The parameter or buffer of a node."""
        if node is None:
            return None
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            raise UnservedError(f"{node} is not a parameter")
        value = operator.attrgetter(str(node.target))(self.captured.module)
        if value.dtype is not torch.float32 or not value.is_cpu or not value.is_contiguous():
            raise UnservedError(
                f"{node.target} is {value.dtype} on {value.device}, not float32 here"
            )
        return value.detach()

    def seen(self, masks: Sequence[fx.Node], causal: bool) -> Sight:
        """Which tokens see which, by the sum of some masks."""
        if not masks:
            if MASK in self.arguments:
                raise UnservedError("an attention sees the padding")
            return Sight(causal)
        mask = self.added(tuple(masks))
        if mask not in self.sights:
            if mask in self.values or mask in self.late:
                raise UnservedError("a mask depends on what the model computes")
            given = self.arguments.get(MASK)
            self.sights[mask] = sight(self.captured, mask, given, self.limit)
        found = self.sights[mask]
        if isinstance(found, str):
            raise UnservedError(found)
        return found

    def added(self, masks: tuple[fx.Node, ...]) -> fx.Node:
        """One node for the sum of some masks."""
        if len(masks) == 1:
            return masks[0]
        if masks not in self.sums:
            before = self.added(masks[:-1])
            with self.captured.graph.inserting_after(max(before, masks[-1])):
                add = self.captured.graph.call_function(aten.add.Tensor, (before, masks[-1]))
            self.sums[masks] = add
        return self.sums[masks]

    def bias(self, run: Callable[..., tuple[Tensor]], heads: int) -> int:
        """The index of a positional bias for `heads` heads."""
        if (run, heads) not in self.biases:
            self.biases.append((run, heads))
        return self.biases.index((run, heads))
