"""Something that is measured in a process of its own: an engine's threads would go on waiting
beside torch's, and take up to half the speed of whatever has its turn next."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from turns import Seconds, ready, seconds

_made: list[Callable[..., Any]] = []  # in such a process


class Apart:
    """What make(*arguments) returns there, called from here. Everything that passes is pickled."""

    def __init__(self, threads: int, make: Callable[..., Any], *arguments: Any) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self._process.submit(_prepare, threads, make, arguments).result()

    def __call__(self, *arguments: Any) -> Any:
        return self._process.submit(_run, arguments).result()

    def timed(self, *arguments: Any) -> Seconds:
        """How long the call takes there."""
        return self._process.submit(_timed, arguments).result()


def _prepare(threads: int, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    ready(threads)
    _made.append(make(*arguments))


def _run(arguments: tuple[Any, ...]) -> Any:
    return _made[0](*arguments)


def _timed(arguments: tuple[Any, ...]) -> Seconds:
    return Seconds(seconds(partial(_made[0], *arguments)))
