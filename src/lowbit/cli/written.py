"""What a verb that writes a report says at its end."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lowbit.evaluation.study import Study
from lowbit.report import verdicts


def say_written(study: Study, paths: Sequence[Path]) -> None:
    """The verdicts, and where to read more."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for sentence in verdicts(study):
        console.print(sentence)
    for path in paths:
        console.print(f"written: {path}")
