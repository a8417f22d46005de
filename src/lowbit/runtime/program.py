"""A program: a list of operations on rows of tokens. Native code runs it; it can be printed."""

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
    """A buffer that a thread keeps, so that a call does not fault in new pages."""

    buffer = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> Tensor:
        if len(self.buffer) < size:
            with torch.inference_mode(False):
                self.buffer = torch.empty(size, dtype=torch.uint8)
        return self.buffer


_ARENA = _Arena()


@dataclass(frozen=True, eq=False)
class Program:
    """A program. columns: of each matrix. inputs, results: the numbers of these matrices."""

    operations: tuple[Operation, ...]
    columns: tuple[int, ...]
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    firsts: Mapping[int, int] = field(init=False)  # offset of each matrix in the arena, in columns

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
        """The results [tokens, columns], by native code except for operations of torch. Raises
        RowError if an id is outside its table."""
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
                    told = f"{error}: a token id or a position is out of range"
                    raise RowError(told) from None
            for m in done:
                del run[m]
        return [run[m] for m in self.results]

    def interpret(self, call: Sequences, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same results by PyTorch, the reference of native code."""
        values: Values = dict(zip(self.inputs, inputs, strict=True))
        for operation in self.operations:
            operation.run(values, call)
        return [values[m] for m in self.results]

    @property
    def by_torch(self) -> list[ByTorch]:
        """The operations that native code lacks."""
        return [op for op in self.operations if isinstance(op, ByTorch)]

    @cached_property
    def _native(self) -> "_Native":
        return _Native.of(self)

    @property
    def counts_places(self) -> bool:
        """Whether an attention depends on the distance of tokens."""
        attentions = [op for op in self.operations if isinstance(op, Attention)]
        return any(op.window or op.bias is not None for op in attentions)

    @property
    def bytes_per_token(self) -> int:
        """The bytes per token of the memory that temporary matrices share."""
        ends = (first + aligned(self.columns[m]) for m, first in self.firsts.items())
        return 4 * max(ends, default=0)

    def __str__(self) -> str:
        lines = [f"{number:4}  {operation}" for number, operation in enumerate(self.operations)]
        results = ", ".join(f"m{m}" for m in self.results)
        end = f"      results: {results}; {self.bytes_per_token} bytes a token"
        return "\n".join([*lines, end])


@dataclass(frozen=True, eq=False)
class _Native:
    """A program in native code. at: the native number of each matrix. inputs: the matrices given to
    native code, including results of torch. results: the matrices it computes. steps: the
    operations of torch, with the ranges of native operations between them."""

    program: Any
    at: dict[int, int]
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    steps: tuple[ByTorch | tuple[int, int], ...]
    done: tuple[tuple[int, ...], ...]  # results of torch that no step reads afterwards

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
        last: dict[int, int] = {}  # the last step that reads or writes each matrix
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
    """The matrices of a call for operations of torch: separate tensors, or views of the arena."""

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
