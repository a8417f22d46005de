"""Rows that wait for a worker, and which of them go together."""

from asyncio import Future
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lowbit.pipelines.pipeline import Item


@dataclass(eq=False, slots=True)
class Entry:
    """A row that waits. deaths: of workers that had it; after the first it goes alone."""

    item: Item
    done: "Future[Any]"
    deaths: int = 0


class Queue:
    """In the order of arrival. Whoever adds bounds it."""

    def __init__(self) -> None:
        self._entries: dict[Entry, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tokens(self) -> int:
        return sum(entry.item.length for entry in self._entries)

    def add(self, entries: Iterable[Entry]) -> None:
        self._entries.update(dict.fromkeys(entries))

    def put_back(self, entries: Iterable[Entry]) -> None:
        """They came first, and are first again."""
        self._entries = {**dict.fromkeys(entries), **self._entries}

    def discard(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._entries.pop(entry, None)

    def take(self, tokens: int) -> list[Entry]:
        """The next batch: the entry that has waited longest, and those nearest to it in length, so
        many that they have at most `tokens` with padding. Empty if nothing waits."""
        first = next(iter(self._entries), None)
        if first is None:
            return []
        batch = [first]
        if not first.deaths:
            length = longest = first.item.length
            others = (entry for entry in self._entries if entry is not first and not entry.deaths)
            for entry in sorted(others, key=lambda entry: abs(entry.item.length - length)):
                wider = max(longest, entry.item.length)
                if wider * (len(batch) + 1) > tokens:
                    break
                batch.append(entry)
                longest = wider
        self.discard(batch)
        return batch
