"""The parent: it holds the model, forks the front and the workers, and replaces workers that die.

It starts no thread, before or after: torch computes with one thread while the model is loaded and
packed. So a fork at any time has whole locks, and shares all weights with its parent.
"""

import gc
import os
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from lowbit.errors import InputError
from lowbit.pipelines.pipeline import Pipeline
from lowbit.serving.front import front
from lowbit.serving.settings import Settings
from lowbit.serving.worker import work

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
# So many deaths within so many seconds are no accidents.
MOST_DEATHS, WITHIN = 10, 60.0
LEFT = 5.0  # seconds in which workers end by themselves once the front has


def listen(host: str, port: int) -> socket.socket:
    """A socket to which clients can connect from now on; they wait for the front. Port 0: any.

    Raises InputError if the address is taken or is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened to: {error.strerror}") from error
    return listener


@dataclass(frozen=True)
class Service:
    """A model and how it is served. threads: of a worker."""

    name: str
    pipeline: Pipeline
    settings: Settings
    workers: int
    threads: int

    def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM or SIGINT, and answer what was accepted.

        Raises InputError if the front ends by itself, or workers end as fast as they are made.
        """
        # What is there now is never freed, so that no reference count of it is written to.
        gc.collect()
        gc.freeze()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            front_process = _forked(
                lambda: front(self.name, self.pipeline, self.settings, listener, theirs),
                signal.SIG_DFL,
                [ours],
            )
            listener.close()
            theirs.close()
            _Parent(self, front_process, ours).watch()
        finally:
            ours.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Parent:
    """Watches children; signals come to it one after the other."""

    def __init__(self, service: Service, front_process: int, control: socket.socket) -> None:
        self.service, self.front, self.control = service, front_process, control
        self.workers: set[int] = set()
        self.deaths: deque[float] = deque(maxlen=MOST_DEATHS)

    def watch(self) -> None:
        stopping = False
        failure = ""
        for _ in range(self.service.workers):
            self._add()
        while self.front:
            told = signal.sigwait(WATCHED)
            if told != signal.SIGCHLD:
                stopping = True
                self._stop_front()
            for child in _ended():
                if child == self.front:
                    self.front = 0
                    failure = failure or ("" if stopping else "the front ended by itself")
                elif child in self.workers:
                    self.workers.discard(child)
                    if self._too_many_deaths():
                        failure = f"{MOST_DEATHS} workers ended within {WITHIN:g} seconds"
                        stopping = True
                        self._stop_front()
                    elif self.front:
                        self._add()  # accepted requests need it even while the front stops
        self._end_workers()
        if failure:
            raise InputError(f"the service stops: {failure}; what they said is above")

    def _stop_front(self) -> None:
        if self.front:  # 0 would be this whole group of processes
            os.kill(self.front, signal.SIGTERM)

    def _add(self) -> None:
        """A worker, whose socket goes to the front."""
        service = self.service
        ours, theirs = socket.socketpair()
        self.workers.add(
            _forked(
                lambda: work(service.pipeline, service.threads, theirs),
                signal.SIG_IGN,  # of Ctrl-C: it ends when the front has all answers
                [ours, self.control],
            )
        )
        theirs.close()
        with ours, suppress(OSError):  # a front that has just ended
            socket.send_fds(self.control, [b"w"], [ours.fileno()])

    def _too_many_deaths(self) -> bool:
        self.deaths.append(time.monotonic())
        return len(self.deaths) == MOST_DEATHS and self.deaths[-1] - self.deaths[0] < WITHIN

    def _end_workers(self) -> None:
        """Their sockets are closed, so they end; those that compute are ended."""
        until = time.monotonic() + LEFT
        while self.workers and time.monotonic() < until:
            signal.sigtimedwait([signal.SIGCHLD], 0.1)
            self.workers -= set(_ended())
        for worker in self.workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)


def _forked(
    run: Callable[[], None], on_interrupt: signal.Handlers, others: list[socket.socket]
) -> int:
    """A child that does `run` and ends. others: sockets that are not for it."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for each in others:
            each.close()
        signal.signal(signal.SIGINT, on_interrupt)
        signal.signal(signal.SIGTERM, on_interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _ended() -> list[int]:
    """Children that have ended since it was asked last."""
    found = []
    with suppress(ChildProcessError):
        while child := os.waitpid(-1, os.WNOHANG)[0]:
            found.append(child)
    return found
