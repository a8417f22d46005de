"""What a verb that writes a report says at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.cli.screen import Screen

if TYPE_CHECKING:
    from lowbit.evaluation.study import Study


def say_written(study: "Study", paths: Sequence[Path]) -> None:
    """The verdicts, and where to read more."""
    from lowbit.report.verdict import model_verdict, overall_verdict

    console = Screen(soft_wrap=True)
    console.print(overall_verdict(study))
    for index in range(1, len(study.models)):
        console.print(f"  {model_verdict(study, index)}")
    for path in paths:
        console.print(f"written: {path}")
