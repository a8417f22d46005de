"""Progress bars: ours say what they count; those of transformers are left out beside them."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm.auto import tqdm
from transformers.utils import logging

Item = TypeVar("Item")


def hidden(shown: bool) -> bool:
    """Whether a bar that may be shown is hidden: in a file or a pipe each step would be a line."""
    return not (shown and (sys.stderr.isatty() or "ipykernel" in sys.modules))


def progress_bar(total: int | None, what: str, unit: str, shown: bool) -> Any:
    """A bar that appears once two seconds have passed; a context to be left at the end. Without a
    total it counts alone."""
    return tqdm(total=total, desc=what, unit=unit, delay=2, disable=hidden(shown))


def tracked(
    items: Iterable[Item], what: str, unit: str, shown: bool, leave: bool = True
) -> Iterable[Item]:
    """The items, with such a bar over them, which stays at the end unless it is one of many."""
    found: Iterable[Item] = tqdm(
        items, what, unit=unit, delay=2, disable=hidden(shown), leave=leave
    )
    return found


@contextmanager
def without_load_reports() -> Iterator[None]:
    """No bars inside, and no tables of what a checkpoint lacks, for callers who tell it themselves;
    what was set before holds after."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_transformers_bars():
            yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def without_transformers_bars() -> Iterator[None]:
    """No bars for loading and writing checkpoints inside; what was set before holds after."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
