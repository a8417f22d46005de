"""A GGUF file of version 3, written tensor by tensor: the inverse of header.py."""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.interop.gguf.blocks import FLOATS, TYPES
from lowbit.progress import tracked

VERSION, ALIGNMENT = 3, 32
# Number of a type of values and its struct code; those of arrays have the type of an item.
_U8, _U32, _I32, _F32, _BOOL, _TEXT, _ARRAY = 0, 4, 5, 6, 7, 8, 9
_CODES = {_U8: "B", _U32: "I", _I32: "i", _F32: "f", _BOOL: "?"}


@dataclass(frozen=True)
class NewTensor:
    """One tensor to be written: its type by name, its shape [out, in], and how it is made: rows of
    blocks, or plain numbers."""

    name: str
    kind: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def number(self) -> int:
        """Of its type."""
        return TYPES[self.kind].number if self.kind in TYPES else FLOATS[self.kind][0]

    @property
    def nbytes(self) -> int:
        elements = math.prod(self.shape)
        if self.kind in TYPES:
            return elements // TYPES[self.kind].weights * TYPES[self.kind].bytes
        return elements * FLOATS[self.kind][1].itemsize


def write_file(
    file: Path, metadata: Mapping[str, Any], tensors: Sequence[NewTensor], progress: bool = False
) -> None:
    """Write `file`. metadata: truths, integers (as u32), floats, texts, bytes, and lists of
    integers, floats or texts."""
    with file.open("wb") as opened:
        opened.write(struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            kind, stored = _value(value)
            opened.write(_text(key) + struct.pack("<I", kind) + stored)
        offset = 0
        for tensor in tensors:
            dims = tensor.shape[::-1]
            opened.write(
                _text(tensor.name)
                + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.number, offset)
            )
            offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
        for tensor in tracked(tensors, "exporting", "tensor", progress):
            opened.write(bytes(-opened.tell() % ALIGNMENT))
            data = tensor.read().contiguous().view(torch.uint8).numpy()
            assert data.nbytes == tensor.nbytes
            opened.write(data.data)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> tuple[int, bytes]:
    """(number of its type, bytes) of one value."""
    if isinstance(value, list | bytes):
        kind = _U8 if isinstance(value, bytes) else _kind(value[0] if value else 0)
        if kind == _TEXT:
            items = b"".join(map(_text, value))
        else:
            kind = _I32 if kind == _U32 else kind
            items = struct.pack(f"<{len(value)}{_CODES[kind]}", *value)
        return _ARRAY, struct.pack("<IQ", kind, len(value)) + items
    kind = _kind(value)
    return kind, _text(value) if kind == _TEXT else struct.pack("<" + _CODES[kind], value)


def _kind(value: Any) -> int:
    return {bool: _BOOL, int: _U32, float: _F32, str: _TEXT}[type(value)]
