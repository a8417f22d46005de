"""The terminal: what is printed there is text, whatever models, files and people call things.

No markup, no emoji names, and no control character reaches it: each is spelled out (visible.py).
"""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from lowbit.visible import visible


class Screen(Console):
    """rich's console for text of which nobody knows who wrote it; its own colours stay."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # A control segment is rich's own: it moves the cursor.
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def say(*lines: object, error: bool = False) -> None:
    """Print lines, unbroken; `error`: on standard error."""
    screen = Screen(file=sys.stderr if error else sys.stdout, soft_wrap=True)
    for line in lines:
        screen.print(str(line))
