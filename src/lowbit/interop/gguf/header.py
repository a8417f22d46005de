"""The header of a GGUF file, read with suspicion: metadata, and where each tensor lies.

    magic "GGUF", version 2 or 3, tensors (u64), keys (u64)
    keys × (name, type, value)          a value may be an array of numbers, truths or texts
    tensors × (name, dimensions, type, offset)
    padding to the alignment, then the tensors' blocks

Every length is compared with what the file still holds before anything of that length is made.
Layout: ggml's docs/gguf.md (github.com/ggml-org/ggml).
"""

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.checkpoint.claims import MOST_COUNTED
from lowbit.checkpoint.documents import check_regular
from lowbit.errors import InputError
from lowbit.visible import shortened

VERSIONS = (2, 3)
ARCHITECTURE, ALIGNMENT = "general.architecture", "general.alignment"
# Number of a type of values -> its struct code; texts and arrays have lengths of their own.
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
TEXT, ARRAY = 8, 9
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 20
MOST_HEADER = 1 << 28  # bytes; vocabulary and merges of a large model take 10 million
MOST_ITEMS = 1 << 21  # of all arrays together: transformers makes an object of each
MOST_NAME = (1 << 16) - 1
MOST_DIMENSIONS = 4
KEY_BYTES, TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # of the smallest


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: shape [out, in] (ggml's dimensions backwards), the number of its type, and where
    its bytes begin in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Texts and numbers of the metadata (of arrays, their lengths), and the tensors by name."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.metadata[ARCHITECTURE])

    def count(self, key: str) -> int:
        """The whole number under a key; 0 if it is absent. Raises InputError for others."""
        value = self.metadata.get(key, 0)
        if type(value) is not int or value < 0:
            raise InputError(
                f"{self.file} says {key} = {shortened(repr(value), 80)}, which is not a count"
            )
        return value


def read_header(file: Path, sizes: dict[int, tuple[int, int]]) -> Header:
    """The header of `file`. sizes: number of a type -> (weights, bytes) of its blocks.

    Raises InputError for what is no GGUF file, is cut short, or claims more than it holds.
    """
    check_regular(file)
    size = file.stat().st_size
    if size < 24:
        raise InputError(f"{file} is not a GGUF file: it has {size} bytes")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as held:
        cursor = _Cursor(file, held, min(size, MOST_HEADER))
        magic, version, tensors, keys = cursor.take("<4sIQQ")
        if magic != b"GGUF":
            raise InputError(f"{file} is not a GGUF file: it begins with {magic!r}")
        if version not in VERSIONS:
            raise InputError(f"{file} is GGUF of version {version:,}; versions 2 and 3 are read")
        cursor.count("keys", keys, KEY_BYTES, MOST_KEYS)
        cursor.count("tensors", tensors, TENSOR_BYTES, MOST_TENSORS)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = cursor.text(MOST_NAME)
            if key in metadata:
                raise InputError(f"{file} holds the key {shortened(key, 80)!r} twice")
            metadata[key] = cursor.value()
        _check_metadata(file, metadata)
        entries = [_entry(cursor) for _ in range(tensors)]
        at = cursor.at
    alignment = metadata.get(ALIGNMENT, 32)
    start = -(-at // alignment) * alignment
    found: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in entries:
        if name in found:
            raise InputError(f"{file} holds the tensor {shortened(name, 80)!r} twice")
        if kind not in sizes:
            raise InputError(f"{file}: {name} is of the unknown type {kind}")
        weights, block = sizes[kind]
        if shape[-1] % weights:
            raise InputError(
                f"{file}: {name} has rows of {shape[-1]:,}, not in blocks of {weights}"
            )
        length = math.prod(shape) // weights * block
        if offset % alignment or start + offset + length > size:
            raise InputError(
                f"{file} has {size:,} bytes; {name} claims {length:,} from {start + offset:,} on"
            )
        found[name] = StoredTensor(name, shape, kind, start + offset, length)
    _check_apart(file, found)
    return Header(file, metadata, found)


@dataclass
class _Cursor:
    """A place in the header, beyond whose `end` nothing is read."""

    file: Path
    held: mmap.mmap
    end: int
    at: int = field(default=0)
    items: int = field(default=0)  # of arrays, up to here

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values of that struct form."""
        size = struct.calcsize(form)
        self.claim(size, "a value")
        values = struct.unpack_from(form, self.held, self.at)
        self.at += size
        return values

    def claim(self, length: int, what: str) -> None:
        """Raises InputError unless `length` more bytes are there."""
        if length > self.end - self.at:
            raise InputError(
                f"{self.file} is not a complete GGUF file: {what} at byte {self.at:,} takes"
                f" {length:,} bytes, and {self.end - self.at:,} are left"
            )

    def count(self, what: str, count: int, least: int, most: int) -> None:
        """Raises InputError for more of them than the file can hold, or than are read."""
        if count > most:
            raise InputError(f"{self.file} claims {count:,} {what}; at most {most:,} are read")
        self.claim(count * least, f"what claims to be {count:,} {what}")

    def text(self, most: int = MOST_HEADER) -> str:
        (length,) = self.take("<Q")
        if length > most:
            raise InputError(f"{self.file} holds a name of {length:,} bytes; {most:,} are read")
        self.claim(length, "a text")
        self.at += length
        try:
            return self.held[self.at - length : self.at].decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.file} holds a text that is not UTF-8: {error}") from error

    def value(self) -> Any:
        """A number, truth or text; of an array, how many it has."""
        (kind,) = self.take("<I")
        if kind in SCALARS:
            return self.take("<" + SCALARS[kind])[0]
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise InputError(f"{self.file} holds a value of the unknown type {kind}")
        each, count = self.take("<IQ")
        self.items += count
        if self.items > MOST_ITEMS and count <= self.end - self.at:
            raise InputError(
                f"{self.file} has arrays of {self.items:,} items; {MOST_ITEMS:,} are read"
            )
        if each in SCALARS:
            self.claim(count * struct.calcsize(SCALARS[each]), f"an array of {count:,}")
            self.at += count * struct.calcsize(SCALARS[each])
        elif each == TEXT:
            self.claim(count * 8, f"an array of {count:,} texts")
            for _ in range(count):
                self.text()
        else:
            raise InputError(f"{self.file} holds an array of arrays, or of the unknown type {each}")
        return count


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, type, offset) of the next tensor."""
    name = cursor.text(MOST_NAME)
    (count,) = cursor.take("<I")
    if not 1 <= count <= MOST_DIMENSIONS:
        raise InputError(f"{cursor.file}: {shortened(name, 80)} claims {count:,} dimensions")
    shape = cursor.take(f"<{count}Q")[::-1]
    if not all(shape) or math.prod(shape) >= 1 << 63:
        raise InputError(f"{cursor.file}: {shortened(name, 80)} has the shape {list(shape)}")
    kind, offset = cursor.take("<IQ")
    return name, shape, kind, offset


def _check_metadata(file: Path, metadata: dict[str, Any]) -> None:
    """Raises InputError for no architecture, counts beyond any model, or an odd alignment."""
    if not isinstance(metadata.get(ARCHITECTURE), str):
        raise InputError(f"{file} holds no {ARCHITECTURE}, so it is not a model")
    alignment = metadata.get(ALIGNMENT, 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise InputError(f"{file} is aligned to {alignment!r}; 8 … 65,536, powers of two, are read")
    for key, value in metadata.items():
        if key.endswith("count") and isinstance(value, int | float) and value > MOST_COUNTED:
            raise InputError(
                f"{file} asks for {key} = {value:,}; at most {MOST_COUNTED:,} are made"
            )


def _check_apart(file: Path, tensors: dict[str, StoredTensor]) -> None:
    """Raises InputError if two tensors share bytes: few bytes could claim to be many weights."""
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.start)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.start + before.bytes > after.start:
            raise InputError(f"{file}: {before.name} and {after.name} share bytes")
