"""The one place where an error becomes what the command line says: a sentence and an exit code.

Our own errors are sentences. What other libraries raise while a file is read becomes one where the
name of that file is known (checkpoint/documents.py, `reading`). What still arrives here is told
with the files that the command was given.
"""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.text import Text

from lowbit.checkpoint.documents import reason
from lowbit.cli.screen import Screen
from lowbit.errors import LowbitError

DEBUG = "--debug"
VERBATIM = "run"  # the verb whose arguments are another program's


def without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, wherever it stands, and whether it was there."""
    given = list(arguments)
    end = given.index(VERBATIM) if VERBATIM in given else len(given)
    own = [argument for argument in given[:end] if argument != DEBUG]
    return own + given[end:], len(own) < end


def fail(error: Exception, arguments: Sequence[str], debug: bool) -> NoReturn:
    """Say what went wrong and leave. debug: after the traceback."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, LowbitError):
        stop(str(error), error.exit_code)
    if isinstance(error, OSError):
        stop(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    stop(f"{_told(error)}{_about(arguments)}", 1)


def stop(sentence: str, code: int | str | None) -> NoReturn:
    """One line on standard error, and the exit code."""
    screen = Screen(file=sys.stderr, soft_wrap=True)
    screen.print(Text.assemble(("error:", "red"), " ", " ".join(sentence.split("\n"))))
    sys.exit(code)


def _told(error: Exception) -> str:
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "there is not enough memory: take a smaller model, batch or length"
    if isinstance(error, RecursionError):
        return "something is nested too deeply"
    return f"{type(error).__name__}, which lowbit did not expect: {reason(error)}"


def _about(arguments: Sequence[str]) -> str:
    named = [argument for argument in arguments if argument and Path(argument).exists()]
    files = f" (it worked on {', '.join(named)})" if named else ""
    return f"{files}; {DEBUG} shows the traceback, with which it can be reported"
