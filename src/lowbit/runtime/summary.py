"""Summaries of the programs of a compiled model, for `lowbit.explain`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lowbit.runtime.programs import Compiled, Programs
from lowbit.runtime.signature import Signature


@dataclass(frozen=True)
class ProgramSummary:
    """The program for calls with certain arguments, or the reason why there is none.

    arguments: their names. refused: why there is no program, or None. operations: their number.
    by_torch: for each operation that torch computes between native parts: its name, how often, and
    why. around: steps that torch computes before or after the program, and why. bytes_per_token: of
    the memory that operations share."""

    arguments: tuple[str, ...]
    refused: str | None = None
    operations: int = 0
    by_torch: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    around: Mapping[str, str] = field(default_factory=dict)
    bytes_per_token: int = 0


def programs(model: nn.Module) -> list[ProgramSummary]:
    """The summaries of a compiled model's programs, oldest first."""
    found = Programs.held_by(model)
    return [] if found is None else [_told(each, made) for each, made in found.made.items()]


def _told(signature: Signature, made: Compiled | str) -> ProgramSummary:
    arguments = signature.names
    if isinstance(made, str):
        return ProgramSummary(arguments, made)
    program = made.lowered.program
    counts = Counter(op.name for op in program.by_torch)
    why = {op.name: op.why for op in program.by_torch}
    return ProgramSummary(
        arguments,
        None,
        len(program.operations),
        {name: (count, why[name]) for name, count in counts.items()},
        made.lowered.left,
        program.bytes_per_token,
    )
