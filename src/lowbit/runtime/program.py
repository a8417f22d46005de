"""A list of operations on rows of tokens, as native code runs it and as it can be printed."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import RowError
from lowbit.kernels.native import module
from lowbit.runtime.operations import Attention, Operation, Sequences, Values


class _Arena(threading.local):
    """Memory that a thread keeps, so that its pages are not faulted in anew for each call."""

    buffer = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> int:
        if len(self.buffer) < size:
            with torch.inference_mode(False):
                self.buffer = torch.empty(size, dtype=torch.uint8)
        return self.buffer.data_ptr()


_ARENA = _Arena()


@dataclass(frozen=True, eq=False)
class Program:
    """columns: of each matrix. inputs and results: matrices that a call gives and takes."""

    operations: tuple[Operation, ...]
    columns: tuple[int, ...]
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    slots: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", _slots(self))

    def run(self, call: Sequences, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results [tokens, columns] by native code. Raises RowError for an id outside its
        table."""
        tokens, sequences = len(call.places), len(call.starts) - 1
        made = [torch.empty(tokens, self.columns[m]) for m in self.results]
        length = call.biases[0].shape[-1] if call.biases else 0
        addresses = [[t.data_ptr() for t in each] for each in (call.ids, inputs, made, call.biases)]
        native = self._native
        arena = _ARENA.of(native.arena_bytes(tokens))
        starts, places = call.starts.data_ptr(), call.places.data_ptr()
        try:
            native.run(tokens, sequences, starts, places, *addresses, length, arena)
        except IndexError as error:
            raise RowError(str(error)) from None
        return made

    def interpret(self, call: Sequences, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same by PyTorch."""
        values: Values = dict(zip(self.inputs, inputs, strict=True))
        for operation in self.operations:
            operation.run(values, call)
        return [values[m] for m in self.results]

    @cached_property
    def _native(self) -> Any:
        assert module is not None
        native = module.Program()
        at: dict[int, int] = {}
        for m in self.inputs:
            at[m] = native.input(self.columns[m])
        for m in self.results:
            at[m] = native.result(self.columns[m])
        for m, slot in self.slots.items():
            at[m] = native.in_slot(self.columns[m], slot)
        for operation in self.operations:
            operation.build(native, at)
        return native

    @property
    def counts_places(self) -> bool:
        """Whether an attention tells tokens apart by how far they are from each other."""
        attentions = [op for op in self.operations if isinstance(op, Attention)]
        return any(op.window or op.bias is not None for op in attentions)

    @property
    def bytes_per_token(self) -> int:
        """Of the memory that the matrices in between share."""
        widths: dict[int, int] = {}
        for m, slot in self.slots.items():
            widths[slot] = max(widths.get(slot, 0), self.columns[m])
        return 4 * sum(widths.values())

    def __str__(self) -> str:
        lines = [f"{number:4}  {operation}" for number, operation in enumerate(self.operations)]
        results = ", ".join(f"m{m}" for m in self.results)
        end = f"      results: {results}; {self.bytes_per_token} bytes a token"
        return "\n".join([*lines, end])


def _slots(program: Program) -> dict[int, int]:
    """The slot of each matrix in between: matrices that are not needed at once share one, the
    narrowest that holds it, or the widest if it has to grow."""
    last = {m: n for n, op in enumerate(program.operations) for m in (*op.reads, *op.writes)}
    kept = {*program.inputs, *program.results}
    slots: dict[int, int] = {}
    widths: list[int] = []
    free: list[int] = []
    for number, operation in enumerate(program.operations):
        for m in operation.writes:
            if m in kept:
                continue
            wide = [s for s in free if widths[s] >= program.columns[m]]
            if wide:
                slot = min(wide, key=widths.__getitem__)
            elif free:
                slot = max(free, key=widths.__getitem__)
            else:
                slot = len(widths)
                widths.append(0)
            if slot in free:
                free.remove(slot)
            widths[slot] = max(widths[slot], program.columns[m])
            slots[m] = slot
        done = [m for m in {*operation.reads, *operation.writes} if last[m] == number]
        free += [slots[m] for m in done if m in slots]
    return slots
