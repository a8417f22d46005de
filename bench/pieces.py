"""Results that are found piece by piece, each kept as one JSON line as soon as it is known.

A run that is killed leaves whole lines and perhaps the beginning of one, whose piece is found
again. Only one process may write a file.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Pieces:
    """The pieces of one file, by name."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = {}
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        whole, _, torn = text.rpartition("\n")
        for line in whole.splitlines():
            piece = json.loads(line)
            self.found[piece["name"]] = piece["value"]
        if torn:
            os.truncate(file, len(whole.encode()) + bool(whole))

    def find(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of a piece; `make` finds it if it is not known yet."""
        if name not in self.found:
            value = make()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "value": value}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.found[name] = value
        return self.found[name]
