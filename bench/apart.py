"""Something that is measured in a process of its own, which is stopped while others have their
turn: threads of an engine that wait awake would take processors from torch's, and each of torch's
barriers would last as long as a time slice."""

import os
import pickle
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from typing import Any

from turns import Seconds, ready, seconds

# After a call libgomp's threads in this process wait awake for about 300,000 pauses.
ASLEEP_AFTER = 0.05  # seconds

_made: list[Callable[..., Any]] = []  # in such a process


class Apart:
    """What make(*arguments) returns there, called from here. Everything that passes is pickled."""

    def __init__(self, threads: int, make: Callable[..., Any], *arguments: Any) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self._number = self._process.submit(os.getpid).result()
        self._ask(_prepare, threads, make, *arguments)

    def __call__(self, *arguments: Any) -> Any:
        return self._ask(_run, *arguments)

    def timed(self, *arguments: Any) -> Seconds:
        """How long the call takes there."""
        return self._ask(_timed, *arguments)

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGCONT)
        self._process.shutdown()

    def _ask(self, what: Callable[..., Any], *arguments: Any) -> Any:
        # Pickled here: the executor would do it in a thread of its own, where copying a tensor
        # starts OpenMP threads that stay. With more of them than processors libgomp no longer
        # waits awake, and small models of this process would take a quarter longer ever after.
        pickled = pickle.dumps(arguments)
        time.sleep(ASLEEP_AFTER)
        self._signal(signal.SIGCONT)
        try:
            return self._process.submit(_answer, what, pickled).result()
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # if it has died
            os.kill(self._number, number)


def called_apart(threads: int, make: Callable[..., Any], *arguments: Any) -> Any:
    """What one call of make(*arguments) returns, in a process that ends with it."""
    apart = Apart(threads, make, *arguments)
    try:
        return apart()
    finally:
        apart.close()


def _answer(what: Callable[..., Any], arguments: bytes) -> Any:
    return what(*pickle.loads(arguments))


def _prepare(threads: int, make: Callable[..., Any], *arguments: Any) -> None:
    ready(threads)
    _made.append(make(*arguments))


def _run(*arguments: Any) -> Any:
    return _made[0](*arguments)


def _timed(*arguments: Any) -> Seconds:
    return Seconds(seconds(partial(_made[0], *arguments)))
