"""Messages between the front and a worker: a length of 8 bytes, then a pickle.

Both ends are processes of this service, and the socket has no name that others could connect to.
"""

import asyncio
import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")


def packed(message: Any) -> bytes:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


def receive(end: socket.socket) -> Any:
    """Wait for a message. Raises EOFError if the other end is closed."""
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    return pickle.loads(_exactly(end, length))


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: Any) -> Any:
    """Send a message, and wait for the answer. Raises EOFError or OSError if the other end is
    closed."""
    writer.write(packed(message))
    await writer.drain()
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


def _exactly(end: socket.socket, length: int) -> bytearray:
    found = bytearray(length)
    view = memoryview(found)
    while view:
        read = end.recv_into(view)
        if not read:
            raise EOFError
        view = view[read:]
    return found
