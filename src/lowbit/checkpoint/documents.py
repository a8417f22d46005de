"""Files that anybody may have written: regular ones alone, of bounded size, depth and numbers.

JSON and YAML are read as plain values: mappings, lists, texts, numbers, true, false and null. A
file is refused in one sentence if reading it would wait (a pipe), not end (/dev/zero), expand
without end (aliases of YAML), or mean one thing here and another there (a key that comes twice).
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lowbit.errors import InputError, LowbitError
from lowbit.visible import shortened

MEBI = 1 << 20
MOST_JSON = 64 * MEBI  # the index of 100,000 tensors has 9
MOST_YAML = MEBI  # a rule for each of 10,000 modules
MOST_DEPTH = 64
MOST_VALUES = 1_000_000
# Words and merges of the largest vocabularies are 2 million values.
MOST_OF = {"tokenizer.json": 4_000_000}
SMALL = MEBI  # bytes, of which no values can fill the memory
MOST_SCALAR = 10_000  # characters of one value of a recipe
MOST_BITS = 128  # of an integer; some configs say "no limit" by 10³⁰

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}
# In C where PyYAML was built with libyaml, which is ten times as fast.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_YAML):  # type: ignore[misc]
    """Refuses a key that comes twice, before merges (<<) are spread, which may bring it again."""

    def construct_document(self, root: yaml.Node) -> Any:
        pending, seen = [root], set[int]()
        while pending:
            node = pending.pop()
            if id(node) in seen:  # an alias
                continue
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                pending += node.value
            elif isinstance(node, yaml.MappingNode):
                pending += [each for pair in node.value for each in pair]
                keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                # 1 and "1" are two keys.
                _check_once((key.tag, key.value) for key in keys)
        return super().construct_document(root)


@contextmanager
def reading(what: object, done: str = "loaded") -> Iterator[None]:
    """Other libraries read a file inside, or compute with what it says. Whatever they raise of it
    is an InputError that names `what` and gives the first line of their reason."""
    try:
        yield
    except LowbitError:
        raise
    except MemoryError as error:
        raise InputError(f"{what} cannot be {done}: it takes more memory than there is") from error
    except RecursionError as error:
        raise InputError(f"{what} cannot be {done}: it is nested too deeply") from error
    except Exception as error:
        raise InputError(f"{what} cannot be {done}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an exception of another library says, on one line: its text, or its kind without one."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    # Some put the kind of fault on the first line, and the fault on the second.
    told = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    if isinstance(error, OSError) and error.strerror:
        told = error.strerror
    if isinstance(error, KeyError):
        told = f"it lacks {told}"
    return shortened(told, 400) or type(error).__name__


def check_regular(file: Path) -> None:
    """Raises InputError for a pipe, a device, a folder, or nothing at all."""
    with _told(file):
        _check_mode(file, file.stat().st_mode)


def check_folder(folder: Path) -> None:
    """Raises InputError where an entry of the folder is a pipe, a device or a socket, or JSON of
    more values than any model needs: readers of models open whatever has a name that they know."""
    with _told(folder):
        for entry in os.scandir(folder):
            try:
                status = entry.stat()
            except OSError:
                continue  # a link that leads nowhere is not read either
            if stat.S_ISDIR(status.st_mode):
                continue
            _check_mode(Path(entry.path), status.st_mode)
            if status.st_size > SMALL and entry.name.endswith(".json"):
                with open(entry.path, "rb") as opened:
                    parts = iter(partial(opened.read, MEBI), b"")
                    check_amount(parts, entry.path, MOST_OF.get(entry.name, MOST_VALUES))


def check_amount(parts: Iterable[bytes], source: object, most: int = MOST_VALUES) -> None:
    """Raises InputError for JSON of more values, before it is parsed: one of three bytes can take
    fifty times as much memory. Beside each value is a comma, or what opens a list or a mapping.

    parts: the bytes of `source`, one part after the other.
    """
    found = 0
    for part in parts:
        found += sum(map(part.count, (b",", b"[", b"{")))
        if found > most:
            raise InputError(
                f"{source} holds more than {most:,} values, more than any model needs: if it is"
                " other data, keep it in another folder"
            )


def read_bytes(file: Path, most: int) -> bytes:
    """The whole file. Raises InputError for what is no regular file, or has more than `most`."""
    with _told(file):
        # Without O_NONBLOCK, opening a pipe waits for somebody to write.
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            status = os.fstat(handle)
            _check_mode(file, status.st_mode)
            stored = b"" if status.st_size > most else opened.read(most + 1)
            size = max(status.st_size, len(stored))
    if size > most:
        raise InputError(f"{file} has {size:,} bytes; at most {most:,} are read")
    return stored


def read_json(file: Path, most: int = MOST_JSON) -> Any:
    """The value that a JSON file holds. Raises InputError."""
    stored = read_bytes(file, most)
    check_amount([stored], file)
    try:
        text = stored.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply: {MOST_DEPTH} levels are read") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {reason(error)}") from error
    _check(value, str(file))
    return value


def read_yaml(file: Path) -> Any:
    """The value that a YAML file holds. Raises InputError."""
    return parsed_yaml(read_bytes(file, MOST_YAML), str(file))


def parsed_yaml(stored: bytes | str, source: str) -> Any:
    """The value of a YAML text. Raises InputError, which names `source`."""
    try:
        _check_events(stored, source)
        value = yaml.load(stored, Loader=_Loader)
    except LowbitError:
        raise
    # Its constructors raise what int(), a date or a key that cannot be one raise.
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source} is not valid YAML: {shortened(detail, 400)}") from error
    _check(value, source)
    return value


def _check_events(stored: bytes | str, source: str) -> None:
    """Raises InputError for depths and lengths that the constructors would not survive."""
    depth = 0
    for event in yaml.parse(stored, Loader=_YAML):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > MOST_SCALAR:
            raise InputError(
                f"{source} holds a value of {len(event.value):,} characters;"
                f" at most {MOST_SCALAR:,} are read"
            )
        if depth > MOST_DEPTH:
            raise InputError(f"{source} is nested too deeply: {MOST_DEPTH} levels are read")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # vocabularies have many keys, which are not looked at one by one
        _check_once(("", key) for key, _ in pairs)
    return found


def _check_once(keys: Iterable[tuple[str, str]]) -> None:
    """Raises ValueError for a key, of a type and a text, that comes twice."""
    seen = set[tuple[str, str]]()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {shortened(key[1], 100)!r} comes twice")
        seen.add(key)


def _constant(written: str) -> float:
    if written == "NaN":
        raise ValueError("NaN is not a number")
    return float(written)  # some configs have limits that are infinite


def _check(value: Any, source: str) -> None:
    """Raises InputError for too many levels or values, which aliases make of few, for integers that
    nobody can print, and for what is no plain value: a date, a set, bytes."""
    pending, seen = [(value, 0)], 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > MOST_DEPTH:
            raise InputError(f"{source} is nested too deeply: {MOST_DEPTH} levels are read")
        if seen > MOST_VALUES:
            raise InputError(f"{source} holds more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            pending += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise InputError(
                f"{source} holds an integer of {value.bit_length():,} bits; at most {MOST_BITS} are"
                " read"
            )
        elif not (value is None or isinstance(value, str | int | float)):
            raise InputError(
                f"{source} holds a {type(value).__name__}: values are texts, numbers, lists and"
                " mappings (a date is a text in quotes)"
            )


@contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except LowbitError:
        raise
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"{str(file)!r} is not the name of a file: {error}") from error


def _check_mode(file: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise InputError(f"{file} is {kind}; only regular files are read")
