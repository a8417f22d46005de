"""A worker: batches come in, results go out, until the front closes its end."""

import ctypes
import gc
import select
import socket
import traceback
from collections.abc import Callable

import torch

from lowbit.errors import InputError, LowbitError
from lowbit.pipelines.pipeline import Pipeline
from lowbit.serving.channel import Answer, Failure, receive_items, send_answer

IDLE = 1.0  # seconds without work, after which memory of the largest batch goes back


def work(pipeline: Pipeline, threads: int, end: socket.socket) -> None:
    """Answer until the other end is closed."""
    torch.set_num_threads(threads)
    trim = _trim()
    while True:
        if not select.select([end], [], [], IDLE)[0]:
            gc.collect()
            trim(0)
        try:
            items = receive_items(end)
        except (EOFError, OSError):
            return
        answer: Answer
        try:
            answer = pipeline.compute(items)  # the front looks for NaN, row by row
        except InputError as error:
            answer = Failure(str(error))
        except LowbitError as error:
            answer = Failure(str(error), 400)
        except Exception:
            traceback.print_exc()
            answer = Failure()
        try:
            send_answer(end, answer)
        except OSError:
            return


def _trim() -> Callable[[int], object]:
    """glibc's function that gives free memory back; other libraries have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
