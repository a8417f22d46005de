"""Messages between the front and a worker: a length of 8 bytes, then the message.

Items are JSON. Results are JSON, or the numbers of an array after a line of JSON with its shape.
Nothing in a message can be run.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.pipelines.pipeline import Item

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Failure:
    """Instead of results: a sentence for the client, and the status of the answer."""

    sentence: str = "the model failed on this input"
    status: int = 500


Answer = Sequence[Any] | np.ndarray | Failure


def send_answer(end: socket.socket, answer: Answer) -> None:
    end.sendall(_framed(answer_bytes(answer)))


def receive_items(end: socket.socket) -> list[Item]:
    """Wait for a batch. Raises EOFError if the other end is closed."""
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    return [Item(*each) for each in json.loads(_exactly(end, length))]


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, items: Sequence[Item]
) -> Answer:
    """Send a batch, and wait for the answer. Raises EOFError or OSError if the other end is
    closed."""
    said = [[item.content, item.length, item.cut] for item in items]
    writer.write(_framed(json.dumps(said).encode()))
    await writer.drain()
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return answer_of(await reader.readexactly(length))


def answer_bytes(answer: Answer) -> bytes:
    if isinstance(answer, Failure):
        return json.dumps({"failure": [answer.sentence, answer.status]}).encode() + b"\n"
    if isinstance(answer, np.ndarray):
        numbers = np.ascontiguousarray(answer, np.float32)
        return json.dumps({"shape": numbers.shape}).encode() + b"\n" + numbers.tobytes()
    return json.dumps({"results": list(answer)}).encode() + b"\n"


def answer_of(content: bytes) -> Answer:
    line, _, numbers = content.partition(b"\n")
    said = json.loads(line)
    if "failure" in said:
        return Failure(*said["failure"])
    if "shape" in said:
        return np.frombuffer(numbers, np.float32).reshape(said["shape"])
    results: list[Any] = said["results"]
    return results


def _framed(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _exactly(end: socket.socket, length: int) -> bytearray:
    found = bytearray(length)
    view = memoryview(found)
    while view:
        read = end.recv_into(view)
        if not read:
            raise EOFError
        view = view[read:]
    return found
