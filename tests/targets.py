"""Kernels as parameters. Those that this processor cannot run are skipped; conftest.py keeps one
skipped test for each in a file."""

from collections.abc import Iterable
from typing import Any

import pytest

from lowbit.kernels import native


def parameters(kernels: Iterable[Any], whole: bool = False) -> list[Any]:
    """Their names, or the kernels themselves if `whole`."""
    found = []
    for kernel in kernels:
        why = native.lacks(kernel.isa) if kernel.isa else None
        marks = pytest.mark.missing_target(why) if why else ()
        found.append(pytest.param(kernel if whole else kernel.name, id=kernel.name, marks=marks))
    return found
