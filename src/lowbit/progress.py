"""Progress bars: ours say what they count; those of transformers are left out beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


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
