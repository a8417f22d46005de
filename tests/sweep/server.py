"""Forks one process per model class from one that has everything imported.

A crash or a class that takes too long costs its own row only.
"""

import gc
import json
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers

from tests.sweep.classes import Registered
from tests.sweep.walk import STEPS, walk

LIMIT = 120.0  # Seconds for one class.


def prepare() -> None:
    """Make this process ready to be forked, before anything has run on several threads."""
    # A child has only the thread that forked, so a pool of threads would be dead in it.
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()


def rows(
    todo: Iterable[Registered], steps: tuple[str, ...] = STEPS, limit: float = LIMIT
) -> Iterator[dict[str, Any]]:
    """{"class", "type", "task", "seconds", "steps": {step: outcome}} of each class, in order."""
    for what in todo:
        start = time.monotonic()
        outcomes = _forked(what, steps, limit)
        yield {
            "class": what.model_class,
            "type": what.model_type,
            "task": what.task,
            "seconds": round(time.monotonic() - start, 1),
            "steps": outcomes,
        }


def _forked(what: Registered, steps: tuple[str, ...], limit: float) -> dict[str, str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(what, steps, writing)
    os.close(writing)
    outcomes: dict[str, str] = {}
    finished = _read(reading, outcomes, time.monotonic() + limit)
    os.close(reading)
    if not finished:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    for step, outcome in outcomes.items():
        if outcome == "running":
            fault = f"killed by signal {os.WTERMSIG(status)}" if finished else f"over {limit:g} s"
            # Before lowbit has done anything, it is no fault of lowbit's.
            outcomes[step] = f"n/a: {fault}" if step == "float" else f"ERR: {fault}"
    return outcomes


def _child(what: Registered, steps: tuple[str, ...], writing: int) -> None:
    try:
        warnings.simplefilter("ignore")
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        for told in walk(what, steps):
            os.write(writing, json.dumps(told).encode() + b"\n")
    except BaseException:
        os.write(writing, json.dumps(["walk", f"ERR: {traceback.format_exc()}"]).encode() + b"\n")
    finally:
        os._exit(0)


def _read(reading: int, outcomes: dict[str, str], deadline: float) -> bool:
    """Lines from the child into `outcomes`; whether it came to an end before the deadline."""
    text = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reading], [], [], left)[0]:
            return False
        if not (piece := os.read(reading, 1 << 16)):
            return True
        *lines, text = (text + piece).split(b"\n")
        outcomes.update(json.loads(line) for line in lines)
    return False
