"""Fast paths that were not taken. Each reason is warned of once and kept for `lowbit.explain`."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn


class SlowPathWarning(UserWarning):
    """The result is right, but a faster way to it was not taken."""


_COUNTS: WeakKeyDictionary[nn.Module, Counter[str]] = WeakKeyDictionary()


def note(module: nn.Module, reason: str, warn: bool = True) -> None:
    """Count that `module` took the slow way. `reason` is a whole sentence.

    warn: whether the first time is worth a SlowPathWarning.
    """
    counts = _COUNTS.setdefault(module, Counter())
    counts[reason] += 1
    if warn and counts[reason] == 1:
        # Python itself drops a text that it has shown before.
        warnings.warn(reason, SlowPathWarning, stacklevel=3)


@contextmanager
def unwarned() -> Iterator[None]:
    """No SlowPathWarning inside, where nobody could act on it. Reasons are still counted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowPathWarning)
        yield


def noted(module: nn.Module) -> Mapping[str, int]:
    """How often each reason was given for `module` itself."""
    return _COUNTS.get(module, Counter())
