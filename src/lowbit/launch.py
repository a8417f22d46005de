"""What is imported first, before all that takes seconds: whose process this is, and its signals.

The signals of a program that imports lowbit stay its own. The command line can be interrupted from
here on, and imports what its verb needs.
"""

import os
import signal
import sys
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Any, NoReturn

COMMAND = "lowbit"
STOPPING = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.01  # seconds until a signal comes again


class Interrupted(SystemExit):
    """A signal to stop. It unwinds the stack, so that half-written output is removed."""


def launched() -> bool:
    """Whether this process is the command line: the program `lowbit`, or `python -m lowbit`."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    if program is not None:
        return Path(program).stem == COMMAND
    # The module that Python was told to run has no file yet when its package is imported.
    told = sys.orig_argv
    return "-m" in told and told[told.index("-m") + 1 :][:1] == [COMMAND]


def leave_at_once() -> None:
    """From now on a signal ends the process with a sentence: nothing is begun that could be undone.

    An exception would unwind imports, and some packages catch it, or end in a traceback of theirs.
    """
    _on_signal(_leave)


def unwind() -> None:
    """From now on a signal raises Interrupted."""
    sys.unraisablehook = _raise_again
    _on_signal(_raise)


def let_go() -> None:
    """From now on a signal ends the process without a word: its work is done."""
    _on_signal(signal.SIG_DFL)


def _on_signal(handler: Any) -> None:
    for number in STOPPING:
        signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"error: interrupted; nothing was begun\n")
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(128 + number)


def _raise_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised while an object is deleted: the signal comes again, a little
    later."""
    if isinstance(dropped.exc_value, Interrupted):
        number = int(dropped.exc_value.code or 0) - 128
        Timer(AGAIN, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(dropped)
