"""Results that are found piece by piece, each kept as one JSON line as soon as it is known.

Each line says what found it. What a page is rendered from lies beside it, docs/results/NAME.jsonl,
and is committed: any machine goes on from there, and none finds a piece again. A run that is killed
leaves whole lines and perhaps the beginning of one, whose piece is found again. Only one process
may write a file.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import where


class Pieces:
    """The pieces of one file, by name; made: what found each (`machine.where`)."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = {}
        self.made: dict[str, dict[str, str]] = {}
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        whole, _, torn = text.rpartition("\n")
        for line in whole.splitlines():
            piece = json.loads(line)
            self.found[piece["name"]] = piece["value"]
            self.made[piece["name"]] = piece.get("made", {})
        if torn:
            os.truncate(file, len(whole.encode()) + bool(whole))

    def find(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of a piece; `make` finds it if it is not known yet."""
        if name not in self.found:
            piece = {"name": name, "value": make(), "made": where()}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(piece, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.found[name], self.made[name] = piece["value"], piece["made"]
        return self.found[name]

    def machines(self) -> list[tuple[str, str]]:
        """Processor and threads of each machine, the first one first."""
        return list(dict.fromkeys(_machine(made) for made in self.made.values() if made))

    def letter(self, name: str) -> str:
        """A to Z: the machine that found a piece, as `legend` explains."""
        return chr(ord("A") + self.machines().index(_machine(self.made[name])))

    def legend(self) -> Iterator[str]:
        """One line for each machine: its letter, processor, threads, commits and torch."""
        yield "Machines:\n"
        for number, (name, threads) in enumerate(self.machines()):
            mine = [made for made in self.made.values() if _machine(made) == (name, threads)]
            commits, torch = (
                ", ".join(dict.fromkeys(each[key] for each in mine)) for key in ("lowbit", "torch")
            )
            letter = chr(ord("A") + number)
            yield f"- {letter}: {name}, {threads}; lowbit {commits}, torch {torch}."


def _machine(made: dict[str, str]) -> tuple[str, str]:
    return made["processor"], made["threads"]
