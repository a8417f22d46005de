"""Kernels, and paths of native operators, as parameters. Those that this processor cannot run are
skipped; conftest.py keeps one skipped test for each in a file."""

from collections.abc import Iterable
from typing import Any

import pytest

from lowbit.kernels import native


def parameters(kernels: Iterable[Any], whole: bool = False) -> list[Any]:
    """Their names, or the kernels themselves if `whole`."""
    found = []
    for kernel in kernels:
        why = _lacks(kernel)
        marks = pytest.mark.missing_target(why) if why else ()
        found.append(pytest.param(kernel if whole else kernel.name, id=kernel.name, marks=marks))
    return found


def runnable(kernels: Iterable[Any]) -> list[str]:
    """The names of those that this processor can run, for a test of all of them together."""
    return [kernel.name for kernel in kernels if not _lacks(kernel)]


def _lacks(kernel: Any) -> str | None:
    return native.lacks(kernel.feature) if kernel.feature else None
