"""The operations of a program, on float32 matrices with one row per token.

Each operation has the matrices it reads and writes, its computation in PyTorch (`run`, the
reference of native code), and its native form (`build`; csrc/program.h). Matrices are referred to
by number. `ByTorch` is an operation of torch that native code lacks.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lowbit.kernels.linear.native import together
from lowbit.kernels.linear.reference import NONLINEARITIES
from lowbit.kernels.native import module
from lowbit.kernels.selection import target_here
from lowbit.nn import QuantEmbedding, QuantLinear
from lowbit.nn.linear import PackedCall
from lowbit.nn.packed_weight import PackedWeight
from lowbit.runtime.values import Matrix

Values = MutableMapping[int, Tensor]


@dataclass(frozen=True)
class Sequences:
    """The tokens of a call, sequence after sequence. starts: int64 [sequences + 1]. places: the
    position of each token in its sequence, int64 [tokens]. Operations refer to ids and biases by
    number."""

    starts: Tensor
    places: Tensor
    ids: Sequence[Tensor]
    biases: Sequence[Tensor]


class Operation(Protocol):
    @property
    def reads(self) -> tuple[int, ...]: ...
    @property
    def writes(self) -> tuple[int, ...]: ...
    def run(self, values: Values, call: Sequences) -> None: ...


class NativeOperation(Operation, Protocol):
    def build(self, native: Any, at: Mapping[int, int]) -> None: ...


@dataclass(frozen=True, eq=False)
class Linear:
    """ys = layers(x), each with its nonlinearity. One call quantizes x for all."""

    names: tuple[str, ...]
    layers: tuple[QuantLinear, ...]
    calls: tuple[PackedCall, ...]
    x: int
    ys: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,)

    @property
    def writes(self) -> tuple[int, ...]:
        return self.ys

    def joined(self, other: "Linear") -> "Linear":
        """One operation for the layers of both. Both must read the same matrix."""
        return Linear(
            self.names + other.names,
            self.layers + other.layers,
            self.calls + other.calls,
            self.x,
            self.ys + other.ys,
        )

    def run(self, values: Values, call: Sequences) -> None:
        products = [one.product for one in self.calls]
        weights = [(one.weight.bytes, one.bias) for one in self.calls]
        for y, value in zip(self.ys, together(products, values[self.x], weights), strict=True):
            values[y] = value

    def build(self, native: Any, at: Mapping[int, int]) -> None:
        first = self.calls[0].product
        places: list[int] = []
        for one in self.calls:
            places += one.weight.bytes.data_ptr(), 0 if one.bias is None else one.bias.data_ptr()
        layers = [one.product._layers[0] for one in self.calls]
        ys = [at[y] for y in self.ys]
        native.linear(first._target, layers, places, at[self.x], ys, first._limbs)

    def __str__(self) -> str:
        ys = ", ".join(f"m{y}" for y in self.ys)
        how = [one.product.nonlinearity for one in self.calls]
        then = "" if set(how) == {"identity"} else f", then {how[0]}"
        return f"{ys} = linear m{self.x} by {', '.join(self.names)}{then}"


@dataclass(frozen=True, eq=False)
class Lookup:
    """y = rows of a table, of a QuantEmbedding or of float32."""

    name: str
    table: QuantEmbedding | Tensor
    packed: PackedWeight | None
    ids: int
    y: int

    reads = ()

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.y,)

    def run(self, values: Values, call: Sequences) -> None:
        ids = call.ids[self.ids]
        if isinstance(self.table, Tensor):
            values[self.y] = functional.embedding(ids, self.table)
        else:
            assert self.packed is not None
            values[self.y] = self.packed.layout.decode(self.packed.bytes, ids, torch.float32)

    def build(self, native: Any, at: Mapping[int, int]) -> None:
        if isinstance(self.table, Tensor):
            native.lookup(self.table.data_ptr(), *self.table.shape, self.ids, at[self.y])
        else:
            assert self.packed is not None
            weight = self.packed.layout.weight  # type: ignore[union-attr]
            where = target_here("decode_packed")
            native.decode(weight, self.packed.bytes.data_ptr(), self.ids, at[self.y], where)

    def __str__(self) -> str:
        return f"m{self.y} = rows {self.ids} of {self.name}"


@dataclass(frozen=True)
class Add:
    """y = a + b."""

    a: int
    b: int
    y: int

    @property
    def reads(self) -> tuple[int, ...]:
        return self.a, self.b

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.y,)

    def run(self, values: Values, call: Sequences) -> None:
        values[self.y] = values[self.a] + values[self.b]

    def build(self, native: Any, at: Mapping[int, int]) -> None:
        native.add(at[self.a], at[self.b], at[self.y])

    def __str__(self) -> str:
        return f"m{self.y} = m{self.a} + m{self.b}"


@dataclass(frozen=True, eq=False)
class Normalize:
    """sum = x + residual; y = the layer norm of sum, or its RMS norm if not `centered`. The sum is
    stored if another operation reads it."""

    weight: Tensor | None
    bias: Tensor | None
    columns: int
    epsilon: float
    x: int
    residual: int | None
    sum: int | None
    y: int
    centered: bool = True

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.y,) if self.sum is None else (self.sum, self.y)

    def run(self, values: Values, call: Sequences) -> None:
        s = values[self.x]
        if self.residual is not None:
            s = s + values[self.residual]
        if self.sum is not None:
            values[self.sum] = s
        shape = (self.columns,)
        if self.centered:
            y = functional.layer_norm(s, shape, self.weight, self.bias, self.epsilon)
        else:
            y = functional.rms_norm(s, shape, self.weight, self.epsilon)
        values[self.y] = y

    def build(self, native: Any, at: Mapping[int, int]) -> None:
        weight, bias = (0 if t is None else t.data_ptr() for t in (self.weight, self.bias))
        residual, kept = (-1 if m is None else at[m] for m in (self.residual, self.sum))
        where = target_here("normalize_rows")
        native.normalize(
            where, self.columns, weight, bias, self.epsilon, self.centered,
            at[self.x], residual, kept, at[self.y],
        )  # fmt: skip

    def __str__(self) -> str:
        of = f"m{self.x}" if self.residual is None else f"m{self.x} + m{self.residual}"
        kept = "" if self.sum is None else f" (the sum is m{self.sum})"
        kind = "layer norm" if self.centered else "RMS norm"
        return f"m{self.y} = {kind} of {of}{kept}"


@dataclass(frozen=True)
class Attention:
    """Each sequence attends to itself. Heads are [tokens, heads x size] in one matrix."""

    query: int
    key: int
    value: int
    y: int
    heads: int
    key_heads: int
    size: int
    value_size: int
    scale: float
    causal: bool
    window: int
    bias: int | None
    firsts: tuple[int, int, int] = (0, 0, 0)  # the first columns of queries, keys and values

    @property
    def reads(self) -> tuple[int, ...]:
        return self.query, self.key, self.value

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.y,)

    def run(self, values: Values, call: Sequences) -> None:
        y = values[self.query].new_zeros(len(call.places), self.heads * self.value_size)
        starts = call.starts.tolist()
        for first, last in zip(starts, starts[1:], strict=False):
            if first == last:
                continue
            shapes = (
                (self.heads, self.size),
                (self.key_heads, self.size),
                (self.key_heads, self.value_size),
            )
            q, k, v = (
                values[m][first:last, column : column + heads * size].unflatten(1, (heads, size))
                for m, column, (heads, size) in zip(self.reads, self.firsts, shapes, strict=True)
            )
            k, v = (t.repeat_interleave(self.heads // self.key_heads, 1) for t in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) * self.scale
            places = torch.arange(last - first)
            if self.bias is not None:
                at = call.places[first] + places
                scores = scores + call.biases[self.bias][0][:, at[:, None], at]
            distance = places[:, None] - places
            seen = torch.ones_like(distance, dtype=torch.bool)
            if self.causal:
                seen &= distance >= 0
            if self.window:
                seen &= distance.abs() <= self.window
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            y[first:last] = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        values[self.y] = y

    def build(self, native: Any, at: Mapping[int, int]) -> None:
        sizes = [self.heads, self.key_heads, self.size, self.value_size]
        bias = -1 if self.bias is None else self.bias
        places = zip(self.reads, self.firsts, strict=True)
        query, key, value = ([at[m], first] for m, first in places)
        where = target_here("sequence_attention")
        native.attention(
            where, sizes, self.scale, self.causal, self.window, query, key, value, bias, at[self.y]
        )

    def __str__(self) -> str:
        more = [f"{self.heads} heads of {self.size}"]
        more += ["causal"] * self.causal + [f"window {self.window}"] * bool(self.window)
        more += ["with a bias by position"] * (self.bias is not None)
        reads = ", ".join(map(_told, self.reads, self.firsts))
        return f"m{self.y} = attention {reads} ({', '.join(more)})"


@dataclass(frozen=True)
class Rotate:
    """y = the rotary embedding of heads in the columns of x from `first` on:
    x cos + (-second half, first half) sin. cos and sin are [tokens, size]."""

    x: int
    first: int
    heads: int
    size: int
    cos: int
    sin: int
    y: int

    @property
    def reads(self) -> tuple[int, ...]:
        return self.x, self.cos, self.sin

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.y,)

    def run(self, values: Values, call: Sequences) -> None:
        x = values[self.x][:, self.first : self.first + self.heads * self.size]
        x = x.unflatten(1, (self.heads, self.size))
        low, high = x.chunk(2, -1)
        cos, sin = (values[m][:, None] for m in (self.cos, self.sin))
        values[self.y] = (x * cos + torch.cat([-high, low], -1) * sin).flatten(1)

    def build(self, native: Any, at: Mapping[int, int]) -> None:
        cos, sin, y = (at[m] for m in (self.cos, self.sin, self.y))
        native.rotate([at[self.x], self.first], self.heads, self.size, cos, sin, y)

    def __str__(self) -> str:
        of = f"{_told(self.x, self.first)} ({self.heads} heads of {self.size})"
        return f"m{self.y} = rotation of {of} by m{self.cos}, m{self.sin}"


@dataclass(frozen=True)
class Gate:
    """y = f(a) b, or f(a) without b. a and b: a matrix and its first column."""

    a: tuple[int, int]
    b: tuple[int, int] | None
    columns: int
    nonlinearity: str
    y: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.a[0],) if self.b is None else (self.a[0], self.b[0])

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.y,)

    def run(self, values: Values, call: Sequences) -> None:
        y = NONLINEARITIES[self.nonlinearity](self._of(values, self.a))
        values[self.y] = y if self.b is None else y * self._of(values, self.b)

    def _of(self, values: Values, operand: tuple[int, int]) -> Tensor:
        matrix, first = operand
        return values[matrix][:, first : first + self.columns]

    def build(self, native: Any, at: Mapping[int, int]) -> None:
        assert module is not None
        kind = getattr(module.Nonlinearity, self.nonlinearity)
        b = [-1, 0] if self.b is None else [at[self.b[0]], self.b[1]]
        native.gate(kind, target_here("gate_rows"), [at[self.a[0]], self.a[1]], b, at[self.y])

    def __str__(self) -> str:
        a = _told(*self.a)
        f = a if self.nonlinearity == "identity" else f"{self.nonlinearity} of {a}"
        by = "" if self.b is None else f", times {_told(*self.b)}"
        return f"m{self.y} = {f}{by} ({self.columns} columns)"


@dataclass(frozen=True, eq=False)
class ByTorch:
    """y = function(arguments) by torch, row by row, if native code has no operation. Arguments are
    matrices, tensors and numbers. why: what native code lacks."""

    name: str
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    y: int
    why: str

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(a.number for a in self.arguments if isinstance(a, Matrix))

    @property
    def writes(self) -> tuple[int, ...]:
        return (self.y,)

    def run(self, values: Values, call: Sequences) -> None:
        given = [values[a.number] if isinstance(a, Matrix) else a for a in self.arguments]
        made = self.function(*given, **self.keywords)
        values[self.y] = made.contiguous()

    def __str__(self) -> str:
        reads = ", ".join(f"m{m}" for m in self.reads)
        return f"m{self.y} = {self.name} of {reads}, by torch"


def _told(matrix: int, first: int) -> str:
    return f"m{matrix}" if first == 0 else f"m{matrix} from column {first}"
