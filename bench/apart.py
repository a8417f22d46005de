"""Something that is measured in a process of its own: an engine's threads would go on waiting
beside torch's, and take up to half the speed of whatever has its turn next. The process is stopped
meanwhile (beside.py)."""

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

import beside
import psutil
from turns import Seconds, ready, seconds

# After a call libgomp's threads in this process wait awake for about 300,000 pauses.
ASLEEP_AFTER = 0.05  # seconds
# OpenVINO's conversion leaves dozens of processes behind, which are busy for ten seconds.
LONGEST_WAIT, OBSERVED = 60.0, 0.5  # seconds

_made: list[Callable[..., Any]] = []  # in such a process


class Apart:
    """What make(*arguments) returns there, called from here. Everything that passes is pickled."""

    def __init__(self, threads: int, make: Callable[..., Any], *arguments: Any) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self._number = self._process.submit(os.getpid).result()
        beside.processes.add(self._number)
        try:
            self._ask(_prepare, threads, make, *arguments)
            self._wait_for_descendants()
        except BaseException:
            self.close()  # its number may be given to another process
            raise

    def __call__(self, *arguments: Any) -> Any:
        return self._ask(_run, *arguments)

    def timed(self, *arguments: Any) -> Seconds:
        """How long the call takes there."""
        return self._ask(_timed, *arguments)

    def close(self) -> None:
        """End the process."""
        beside.processes.discard(self._number)
        self._process.shutdown()

    def _wait_for_descendants(self) -> None:
        """Until they do nothing."""
        end, before = time.monotonic() + LONGEST_WAIT, self._spent_by_descendants()
        while before and time.monotonic() < end:
            time.sleep(OBSERVED)
            now = self._spent_by_descendants()
            if now.items() <= before.items():
                return
            before = now

    def _spent_by_descendants(self) -> dict[int, float]:
        """Seconds of processor time by process."""
        spent: dict[int, float] = {}
        for process in psutil.Process(self._number).children(recursive=True):
            with suppress(psutil.Error):
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
        return spent

    def _ask(self, what: Callable[..., Any], *arguments: Any) -> Any:
        # Pickled here: the executor would do it in a thread of its own, where copying a tensor
        # starts OpenMP threads that stay. With more of them than processors libgomp no longer
        # waits awake, and small models of this process would take a quarter longer ever after.
        pickled = pickle.dumps(arguments)
        os.kill(self._number, signal.SIGCONT)
        time.sleep(ASLEEP_AFTER)
        return self._process.submit(_answer, what, pickled).result()


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
