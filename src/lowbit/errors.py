"""The errors that a user can cause. The message is one sentence, which the command line prints.

The class decides the exit code: 2 for wrong use, 1 for a wrong input or machine.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from lowbit.visible import visible


class LowbitError(ValueError):
    """The base class of all lowbit errors. The message is one sentence.

    Control characters in quoted file names and texts are escaped.

    Attributes:
        exit_code: The exit status of the command line.
    """

    exit_code = 1

    def __init__(self, sentence: str = "") -> None:
        super().__init__(visible(sentence))


class UsageError(LowbitError):
    """The call is at fault: an unknown preset, pattern, key or option, a value out of range.

    The command line exits with 2.
    """

    exit_code = 2


class InputError(LowbitError):
    """The input or the machine is at fault: a broken checkpoint, infinite weights, a full disk.

    The command line exits with 1.
    """


class RowError(InputError, IndexError):
    """A row index is out of range. Also an IndexError, the error that torch raises."""


def check_choice(
    kind: str,
    name: object,
    known: Collection[str],
    others: str = "",
    error: type[LowbitError] = UsageError,
) -> None:
    """Raises `error` if `name` is not among `known` names of this `kind`.

    The message suggests the nearest name, and lists `others`, or else all known names.
    """
    if name in known:
        return
    given = name[:100] if isinstance(name, str) else name
    listed = others or (" or " if len(known) == 2 else ", ").join(known)
    near = get_close_matches(str(given), known, n=1)
    use = f"; did you mean {near[0]}? Use {listed}" if near else f": use {listed}"
    raise error(f"{kind} {given!r} is unknown{use}")


def check_at_least(name: str, number: float, least: int) -> None:
    """Raises UsageError if number < least, or for NaN."""
    if not number >= least:
        raise UsageError(f"{name} must be at least {least}, not {number}")


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Prefix the messages of lowbit errors with `what`: "encoder.fc1.weight: …"."""
    try:
        yield
    except LowbitError as error:
        raise type(error)(f"{what}: {error}") from None
