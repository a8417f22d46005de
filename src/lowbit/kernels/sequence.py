"""Several small operations in one call of native code: a call from Python takes longer than such an
operation."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lowbit.kernels.native import module

# For more numbers torch uses several threads.
MOST_NUMBERS = 32768


class SmallOperation(Protocol):
    """An operation on tensors that stay where they are, with the bits of torch's operator."""

    def add_to(self, native: Any) -> None:
        """Append this operation to a native Sequence."""


def sequence(operations: Sequence[SmallOperation]) -> Callable[[], None]:
    """A function that runs the operations in order. It keeps references to the tensors."""
    assert module is not None
    run = module.Sequence()
    for each in operations:
        each.add_to(run)

    def call(kept: object = tuple(operations)) -> None:
        run()

    return call
