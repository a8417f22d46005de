"""The errors a user can cause. Each carries one sentence; the command line prints it as it is.

The class decides the exit code: 2 for wrong use, 1 for a wrong input or machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lowbit.visible import visible


class LowbitError(ValueError):
    """Base of every error raised on purpose. `exit_code` is what the command line returns. Its
    sentence is text, whatever the files and people that it quotes hide in it."""

    exit_code = 1

    def __init__(self, sentence: str = "") -> None:
        super().__init__(visible(sentence))


class UsageError(LowbitError):
    """Wrong use: an unknown preset, pattern, key or option, a value out of range."""

    exit_code = 2


class InputError(LowbitError):
    """The input or the machine: a broken checkpoint, weights that are not finite, a full disk."""


class RowError(InputError, IndexError):
    """A row that a table does not have: an IndexError too, as torch raises it."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What goes wrong inside is told of `what`: "encoder.fc1.weight: …"."""
    try:
        yield
    except LowbitError as error:
        raise type(error)(f"{what}: {error}") from None
