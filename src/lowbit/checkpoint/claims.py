"""What a checkpoint claims to be, against what its files hold.

A few bytes of config.json can ask for a billion layers, or for a table that no memory holds. Such a
model is refused while it is described, before anything is allocated.
"""

import json
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules import module as hooks

from lowbit.checkpoint.documents import check_amount
from lowbit.errors import InputError

# How the keys of config.json begin or end that count what is made one by one: transformers makes
# lists of so many things before there is a model.
COUNT_BEGINS, COUNT_ENDS = "num_", ("layers", "layer", "labels")
MOST_COUNTED = 1 << 20
MOST_HEADER = 100_000_000  # bytes; safetensors itself reads no longer one
MOST_OF_HEADER = 2_000_000  # values; a tensor has about eight
# A tied weight is described up to four times (T5), and buffers are computed.
TIMES = 4
FREE_ELEMENTS = 1 << 25
# One tensor of a checkpoint can be that of all experts, of which a model may have many modules.
MODULES_PER_TENSOR = 64
FREE_MODULES = 20_000
PLANES_PER_BYTE = 8


@dataclass(frozen=True)
class Held:
    """What the headers of a checkpoint's files say that they hold."""

    names: tuple[str, ...]
    elements: int

    @property
    def tensors(self) -> int:
        return len(self.names)


def check_counts(stored: Any, file: Path) -> None:
    """Raises InputError where a count of config.json is beyond what any model has."""
    pending = [stored]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        if not isinstance(value, dict):
            continue
        for key, item in value.items():
            counts = key.startswith(COUNT_BEGINS) or key.endswith(COUNT_ENDS)
            if counts and isinstance(item, int | float) and item > MOST_COUNTED:
                raise InputError(
                    f"{file} asks for {key} = {item:,}; at most {MOST_COUNTED:,} are made"
                )
            pending.append(item)


def held_by(files: Sequence[Path], quantized: bool) -> Held:
    """Raises InputError if a header is not valid or claims more than its file holds.

    quantized: whether a byte may hold as many weights as it has bits.
    """
    names: list[str] = []
    elements = 0
    for file in files:
        for name, entry in read_header(file).items():
            names.append(name)
            elements += _elements(file, name, entry)
    return Held(tuple(names), elements * (PLANES_PER_BYTE if quantized else 1))


def read_header(file: Path) -> dict[str, Any]:
    """Name -> dtype, shape and place of a safetensors file. Raises InputError."""
    size = file.stat().st_size
    if not size:
        raise InputError(f"{file} is empty")
    length = 0
    if size >= 8:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
    if not 2 <= length <= min(size - 8, MOST_HEADER):
        raise InputError(
            f"{file} is not a complete safetensors file: its header claims {length:,} of"
            f" {size:,} bytes"
        )
    with file.open("rb") as opened:
        opened.seek(8)
        text = opened.read(length)
    check_amount([text], file, MOST_OF_HEADER)
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("it is not a mapping")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a safetensors file: its header is not valid") from error
    header.pop("__metadata__", None)
    return header


def _elements(file: Path, name: str, entry: Any) -> int:
    shape = entry.get("shape") if isinstance(entry, Mapping) else None
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise InputError(f"{file} is not a safetensors file: the entry of {name!r} has no shape")
    count = 1
    for n in shape:
        count *= n
    if count > PLANES_PER_BYTE * file.stat().st_size:
        raise InputError(
            f"{file} has {file.stat().st_size:,} bytes, and claims {count:,} numbers for {name}"
        )
    return count


@contextmanager
def describing(held: Held, source: Path) -> Iterator[None]:
    """A model is built inside, without data. Raises InputError as soon as it has more modules, or
    more numbers, than a model can have of which the files hold so much."""
    most_modules = FREE_MODULES + MODULES_PER_TENSOR * held.tensors
    most_elements = FREE_ELEMENTS + TIMES * held.elements
    thread = threading.get_ident()
    modules = elements = 0

    def count_module(module: Any, name: str, made: Any) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            if modules > most_modules:
                raise InputError(
                    f"{source / 'config.json'} describes a model of more than {most_modules:,}"
                    f" modules; the weights there are {held.tensors:,} tensors"
                )

    def count_elements(module: Any, name: str, tensor: Tensor | None) -> None:
        nonlocal elements
        if tensor is not None and tensor.is_meta and threading.get_ident() == thread:
            elements += tensor.numel()
            if elements > most_elements:
                raise InputError(
                    f"{source / 'config.json'} describes a model of more than {most_elements:,}"
                    f" numbers, such as {name} {list(tensor.shape)} of a"
                    f" {type(module).__name__}; the weights there are {held.elements:,}"
                )

    handles = (
        hooks.register_module_module_registration_hook(count_module),
        hooks.register_module_parameter_registration_hook(count_elements),
        hooks.register_module_buffer_registration_hook(count_elements),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
