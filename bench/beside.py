"""Processes of engines beside this one. They are stopped while something else is measured: threads
that wait awake would take processors from torch's, and each barrier of torch's would then last as
long as a time slice."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

processes: set[int] = set()


def send(number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it has died
            os.kill(process, number)


@contextmanager
def stopped() -> Iterator[None]:
    """They go on afterwards, whatever happens: this process waits for them when it ends."""
    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)
