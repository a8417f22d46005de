"""Lines of text files. Strictly UTF-8, with or without a byte-order mark.

A line ends in \\n or \\r\\n and nowhere else: sentences do hold U+0085, U+2028 and form feeds, at
which `str.splitlines` would cut them.
"""

from pathlib import Path

from lowbit.checkpoint.documents import read_bytes
from lowbit.errors import InputError

MOST_BYTES = 1 << 32  # of a text, which is held in memory
MOST_CHARACTERS = 1 << 20  # of a line that a tokenizer reads as a whole


def decoded_line(stored: bytes, number: int, source: str) -> str:
    """One line of a stream without its end. Raises InputError with its number: for what is not
    UTF-8, and for more characters than a tokenizer can read at once."""
    try:
        line = stored.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{source}, line {number}: byte {byte:#04x} is not UTF-8") from error
    line = line.removesuffix("\n").removesuffix("\r")
    check_length(line, f"{source}, line {number}")
    return line


def check_length(line: str, where: str) -> None:
    """Raises InputError for a text that no tokenizer should read at once."""
    if len(line) > MOST_CHARACTERS:
        raise InputError(
            f"{where} has {len(line):,} characters; at most {MOST_CHARACTERS:,} are read at once"
        )


def read_text(file: Path) -> str:
    """The whole file, line ends as they are. Raises InputError, also for an empty file."""
    stored = read_bytes(file, MOST_BYTES)
    try:
        text = stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Positions count from after the byte-order mark, if there is one.
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise InputError(f"{file}, line {line}: byte {byte:#04x} is not UTF-8") from error
    if not text:
        raise InputError(f"{file} is empty")
    return text


def read_lines(file: Path) -> list[str]:
    """Its lines without their ends; empty ones are kept. Raises InputError as `read_text` does."""
    lines = split_lines(read_text(file))
    for number, line in enumerate(lines, 1):
        check_length(line, f"{file}, line {number}")
    return lines


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; empty ones are kept."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
