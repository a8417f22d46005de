"""A list of operations on rows of tokens, as native code runs it and as it can be printed."""

import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from lowbit.errors import RowError
from lowbit.kernels.native import module
from lowbit.runtime.allocate import Need, aligned, allocated
from lowbit.runtime.operations import (
    Attention,
    ByTorch,
    NativeOperation,
    Operation,
    Sequences,
    Values,
)


class _Arena(threading.local):
    """Memory that a thread keeps, so that its pages are not faulted in anew for each call."""

    buffer = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> Tensor:
        if len(self.buffer) < size:
            with torch.inference_mode(False):
                self.buffer = torch.empty(size, dtype=torch.uint8)
        return self.buffer


_ARENA = _Arena()


@dataclass(frozen=True, eq=False)
class Program:
    """columns: of each matrix. inputs and results: matrices that a call gives and takes."""

    operations: tuple[Operation, ...]
    columns: tuple[int, ...]
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    firsts: Mapping[int, int] = field(init=False)  # columns of the arena before each matrix in it

    def __post_init__(self) -> None:
        last = {m: n for n, op in enumerate(self.operations) for m in (*op.reads, *op.writes)}
        elsewhere = {*self.inputs, *self.results, *(op.y for op in self.by_torch)}
        needs = [
            Need(m, self.columns[m], number, last[m])
            for number, operation in enumerate(self.operations)
            for m in operation.writes
            if m not in elsewhere
        ]
        object.__setattr__(self, "firsts", allocated(needs))

    def run(self, call: Sequences, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results [tokens, columns] by native code, but for operations of torch's. Raises
        RowError for an id outside its table."""
        tokens, sequences = len(call.places), len(call.starts) - 1
        native, run = self._native, dict(zip(self.inputs, inputs, strict=True))
        run |= {m: torch.empty(tokens, self.columns[m]) for m in native.results}
        length = call.biases[0].shape[-1] if call.biases else 0
        ids, biases = ([t.data_ptr() for t in each] for each in (call.ids, call.biases))
        results = [run[m].data_ptr() for m in native.results]
        starts, places = call.starts.data_ptr(), call.places.data_ptr()
        arena = _ARENA.of(native.program.arena_bytes(tokens))
        values = _Arranged(run, native, arena, tokens, self.columns)
        for step, done in zip(native.steps, native.done, strict=True):
            if isinstance(step, ByTorch):
                step.run(values, call)
            else:
                given = [run[m].data_ptr() if m in run else 0 for m in native.inputs]
                try:
                    native.program.run(
                        tokens, sequences, starts, places, ids, given, results, biases, length,
                        arena.data_ptr(), *step,
                    )  # fmt: skip
                except IndexError as error:
                    raise RowError(str(error)) from None
            for m in done:
                del run[m]
        return [run[m] for m in self.results]

    def interpret(self, call: Sequences, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same by PyTorch."""
        values: Values = dict(zip(self.inputs, inputs, strict=True))
        for operation in self.operations:
            operation.run(values, call)
        return [values[m] for m in self.results]

    @property
    def by_torch(self) -> list[ByTorch]:
        """Operations that native code lacks."""
        return [op for op in self.operations if isinstance(op, ByTorch)]

    @cached_property
    def _native(self) -> "_Native":
        return _Native.of(self)

    @property
    def counts_places(self) -> bool:
        """Whether an attention tells tokens apart by how far they are from each other."""
        attentions = [op for op in self.operations if isinstance(op, Attention)]
        return any(op.window or op.bias is not None for op in attentions)

    @property
    def bytes_per_token(self) -> int:
        """Of the memory that the matrices in between share."""
        ends = (first + aligned(self.columns[m]) for m, first in self.firsts.items())
        return 4 * max(ends, default=0)

    def __str__(self) -> str:
        lines = [f"{number:4}  {operation}" for number, operation in enumerate(self.operations)]
        results = ", ".join(f"m{m}" for m in self.results)
        end = f"      results: {results}; {self.bytes_per_token} bytes a token"
        return "\n".join([*lines, end])


@dataclass(frozen=True, eq=False)
class _Native:
    """at: native numbers of matrices. inputs: what native code is given, torch's results among
    them; results: what it makes. steps: torch's operations, and from where to where native ones
    go between them."""

    program: Any
    at: dict[int, int]
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    steps: tuple[ByTorch | tuple[int, int], ...]
    done: tuple[tuple[int, ...], ...]  # torch's results that nobody reads after a step

    @classmethod
    def of(cls, program: Program) -> "_Native":
        assert module is not None
        native, at = module.Program(), dict[int, int]()
        torch_made = {op.y for op in program.by_torch}
        inputs = (*program.inputs, *torch_made)
        results = tuple(m for m in program.results if m not in inputs)
        for m in inputs:
            at[m] = native.input(program.columns[m])
        for m in results:
            at[m] = native.result(program.columns[m])
        for m, first in program.firsts.items():
            at[m] = native.in_arena(program.columns[m], first)
        steps: list[ByTorch | tuple[int, int]] = []
        last: dict[int, int] = {}  # step that reads or makes a matrix
        built = begun = 0
        for operation in program.operations:
            if isinstance(operation, ByTorch):
                steps += [(begun, built)] * (begun < built)
                steps.append(operation)
                begun = built
                last |= dict.fromkeys((*operation.reads, operation.y), len(steps) - 1)
            else:
                cast(NativeOperation, operation).build(native, at)
                built += 1
                last |= dict.fromkeys(operation.reads, len(steps))
        steps += [(begun, built)] * (begun < built)
        passing = torch_made - set(program.results)
        done = tuple(tuple(m for m in passing if last[m] == n) for n in range(len(steps)))
        return cls(native, at, inputs, results, tuple(steps), done)


@dataclass(frozen=True, eq=False)
class _Arranged(MutableMapping[int, Tensor]):
    """The matrices of a call as torch's operations see them: of their own, or in the arena."""

    own: dict[int, Tensor]
    native: _Native
    arena: Tensor
    tokens: int
    columns: Sequence[int]

    def __getitem__(self, m: int) -> Tensor:
        found = self.own.get(m)
        if found is not None:
            return found
        start = self.arena.data_ptr()
        at = self.native.program.place(self.native.at[m], self.tokens, start) - start
        size = 4 * self.tokens * self.columns[m]
        return self.arena[at : at + size].view(torch.float32).view(self.tokens, self.columns[m])

    def __setitem__(self, m: int, value: Tensor) -> None:
        self.own[m] = value

    def __delitem__(self, m: int) -> None:
        del self.own[m]

    def __iter__(self) -> Iterator[int]:
        return iter(self.own)

    def __len__(self) -> int:
        return len(self.own)
