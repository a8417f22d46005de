"""Packages that only some commands need: asked for when they are used, told apart when absent."""

from importlib import import_module
from types import ModuleType

from lowbit.errors import InputError


def needed(module: str, package: str, extra: str) -> ModuleType:
    """The module. Raises InputError where its package, part of an extra of lowbit's, is absent."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f'this needs the package {package}: pip install ".[{extra}]" in the source folder of'
            " lowbit"
        ) from error
