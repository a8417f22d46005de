"""Rows -> items -> a bounded queue -> workers -> results."""

import asyncio
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from lowbit.pipelines.pipeline import NOT_FINITE, Pipeline, Row
from lowbit.serving.channel import Failure, exchange
from lowbit.serving.metrics import Metrics
from lowbit.serving.problem import ProblemError
from lowbit.serving.queue import Entry, Queue
from lowbit.serving.settings import Settings

MOST_DEATHS = 2  # of workers that had a row: it is taken to be the cause
SMOOTHING = 0.9


@dataclass(frozen=True)
class Answers:
    """In the order of the rows; None for one without a token. tokens: of all rows."""

    results: list[Any]
    tokens: int


class Dispatcher:
    """Lives in the front's event loop."""

    def __init__(self, pipeline: Pipeline, settings: Settings, metrics: Metrics) -> None:
        self.pipeline, self.settings, self.metrics = pipeline, settings, metrics
        self.queue = Queue()
        self.accepted = 0
        self.workers = 0
        self.rate = 0.0  # tokens a second, of one worker
        self.filled = asyncio.Event()
        # One thread: workers have the other cores, and tokenizing is quick.
        self.tokenizing = ThreadPoolExecutor(1, "tokenizing")

    async def answer(self, rows: Sequence[Row]) -> Answers:
        """The results of a request's rows. If it is cancelled, rows that no worker has yet are
        dropped.

        Raises ProblemError: 429 if the queue is full, 504 after the timeout, 500 if workers died or
        the model gives NaN.
        """
        if self.accepted + len(rows) > self.settings.queue:
            raise ProblemError(
                429,
                f"{self.accepted} rows wait already, and {self.settings.queue} may: try again"
                " later",
                self.retry_after(),
            )
        self._hold(len(rows))
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await self._answer(rows)
        except TimeoutError:
            raise ProblemError(
                504, f"there was no answer within {self.settings.timeout:g} seconds"
            ) from None
        finally:
            self._hold(-len(rows))

    async def _answer(self, rows: Sequence[Row]) -> Answers:
        loop = asyncio.get_running_loop()
        items = await loop.run_in_executor(self.tokenizing, self.pipeline.encode, rows)
        entries = [Entry(item, loop.create_future()) for item in items if item.length]
        self.queue.add(entries)
        self.filled.set()
        try:
            found = iter(await asyncio.gather(*(entry.done for entry in entries)))
        finally:
            self.queue.discard(entries)
            for entry in entries:
                entry.done.cancel()
        results = [next(found) if item.length else None for item in items]
        return Answers(results, sum(item.length for item in items))

    async def serve(self, end: socket.socket) -> None:
        """Give batches to the worker at the other end, one at a time, as long as it lives."""
        end.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=end)
        self._count_workers(1)
        batch: list[Entry] = []
        try:
            while True:
                batch = await self._next(reader)
                started = time.monotonic()
                answer = await exchange(reader, writer, [entry.item for entry in batch])
                self._measure(batch, time.monotonic() - started)
                _settle(batch, answer)
                batch = []
        except (EOFError, OSError):
            self.metrics.deaths.inc()
            self._rescue(batch)
        finally:
            self._count_workers(-1)
            writer.close()

    async def _next(self, reader: asyncio.StreamReader) -> list[Entry]:
        """Wait for a batch. Raises EOFError if the worker ends meanwhile."""
        while not (batch := self.queue.take(self.settings.tokens)):
            self.filled.clear()
            filled = asyncio.ensure_future(self.filled.wait())
            # A worker says nothing unless it is asked: what can be read is the end.
            ended = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait({filled, ended}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise EOFError
            finally:
                filled.cancel()
                ended.cancel()
                await asyncio.gather(ended, return_exceptions=True)
        return batch

    def _rescue(self, batch: list[Entry]) -> None:
        """The rows of a worker that has died go to another, each alone; the one that kills again
        is refused. Rows whose client has left are dropped."""
        batch = [entry for entry in batch if not entry.done.done()]
        for entry in batch:
            entry.deaths += 1
        lost = [entry for entry in batch if entry.deaths >= MOST_DEATHS]
        _settle(lost, Failure())
        self.queue.put_back(entry for entry in batch if entry.deaths < MOST_DEATHS)
        self.filled.set()

    def _measure(self, batch: list[Entry], seconds: float) -> None:
        tokens = sum(entry.item.length for entry in batch)
        self.metrics.batches.observe(len(batch))
        self.metrics.tokens.inc(tokens)
        now = tokens / max(seconds, 1e-6)
        self.rate = SMOOTHING * self.rate + (1 - SMOOTHING) * now if self.rate else now

    def retry_after(self) -> int:
        """Seconds until what waits is done, as it goes now."""
        rate = self.rate * max(1, self.workers)
        return max(1, min(60, ceil(self.queue.tokens / rate))) if rate else 1

    def _hold(self, rows: int) -> None:
        self.accepted += rows
        self.metrics.accepted.set(self.accepted)

    def _count_workers(self, change: int) -> None:
        self.workers += change
        self.metrics.workers.set(self.workers)


def _settle(batch: Sequence[Entry], answer: Any) -> None:
    """Results or a failure for all whose clients still wait. A row with NaN fails by itself: those
    beside it are other clients'."""
    for place, entry in enumerate(batch):
        if entry.done.done():
            continue
        if isinstance(answer, Failure):
            entry.done.set_exception(ProblemError(answer.status, answer.sentence))
        elif isinstance(answer, np.ndarray) and not np.isfinite(answer[place]).all():
            entry.done.set_exception(ProblemError(500, NOT_FINITE.format("")))
        else:
            entry.done.set_result(answer[place])
