"""A pipeline without a model, and workers that are threads: what a test needs of a service."""

import asyncio
import socket
import threading
import time
from contextlib import asynccontextmanager, suppress

from lowbit.pipelines.pipeline import Item
from lowbit.serving.dispatcher import Dispatcher
from lowbit.serving.metrics import Metrics
from lowbit.serving.settings import Settings
from lowbit.serving.worker import work


class Shouting:
    """Results are the texts in capitals. "die" ends the worker, "fail" is a fault of the model,
    "wait" takes a while. seen: the batches."""

    kind = "embedding"

    def __init__(self):
        self.seen = []

    def encode(self, rows):
        return [Item(text, len(text), False) for (text,) in rows]

    def compute(self, items):
        texts = [item.content for item in items]
        self.seen.append(texts)
        if "die" in texts:
            raise SystemExit
        if "fail" in texts:
            raise ZeroDivisionError
        if "wait" in texts:
            time.sleep(0.2)
        return [text.upper() for text in texts]


def started_worker(dispatcher, pipeline):
    """The task that gives batches to a new worker."""
    ours, theirs = socket.socketpair()

    def run():
        with theirs, suppress(SystemExit):
            work(pipeline, 1, theirs)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.ensure_future(dispatcher.serve(ours))


@asynccontextmanager
async def service(workers=1, pipeline=None, **settings):
    """A dispatcher with its workers."""
    pipeline = pipeline or Shouting()
    made = Settings(**{"queue": 20, "inputs": 10, **settings})
    dispatcher = Dispatcher(pipeline, made, Metrics())
    tasks = [started_worker(dispatcher, pipeline) for _ in range(workers)]
    try:
        yield dispatcher
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def value(dispatcher, name):
    """Of a counter or gauge without labels."""
    return dispatcher.metrics.registry.get_sample_value(f"lowbit_{name}")
