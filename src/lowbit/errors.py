"""The errors a user can cause. Each carries one sentence; the command line prints it as it is.

The class decides the exit code: 2 for wrong use, 1 for a wrong input or machine.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from lowbit.visible import visible


class LowbitError(ValueError):
    """Base of every error that lowbit raises on purpose. Its message is one sentence.

    Control characters in quoted file names and texts are spelled out.

    Attributes:
        exit_code: What the command line returns.
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
    """A row that a table does not have: an IndexError too, as torch raises it."""


def check_choice(
    kind: str,
    name: object,
    known: Collection[str],
    others: str = "",
    error: type[LowbitError] = UsageError,
) -> None:
    """Raises `error` if `name` is not among `known` names of this `kind`.

    The sentence suggests the nearest name, and says what to use: `others`, or all that is known.
    """
    if name in known:
        return
    given = name[:100] if isinstance(name, str) else name
    listed = others or (" or " if len(known) == 2 else ", ").join(known)
    near = get_close_matches(str(given), known, n=1)
    use = f"; did you mean {near[0]}? Use {listed}" if near else f": use {listed}"
    raise error(f"{kind} {given!r} is unknown{use}")


def check_at_least(name: str, number: float, least: int) -> None:
    """Raises UsageError for a smaller number."""
    if number < least:
        raise UsageError(f"{name} must be at least {least}, not {number}")


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What goes wrong inside is told of `what`: "encoder.fc1.weight: …"."""
    try:
        yield
    except LowbitError as error:
        raise type(error)(f"{what}: {error}") from None
