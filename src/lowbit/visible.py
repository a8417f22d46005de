"""Text from models, files and people, made safe to show: what it hides becomes visible.

Control characters and halves of surrogate pairs cannot stand in HTML, SVG or UTF-8, and terminals
obey them; directional overrides and embeddings reorder what follows them. Each is shown as its code
point, [U+202E] say. Tabs and line ends stay.
"""

import re
import unicodedata

# Control, surrogate, and the format characters that open or close a direction.
HIDDEN = {"Cc", "Cs"}
DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
KEPT = set("\t\n")
# Not characters, and refused by XML.
NEVER = {"\ufffe", "\uffff"}
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
SPECIAL = re.compile(r"[\\`*_\[\]|~#$]")


def visible(text: str) -> str:
    """`text` with every hidden character spelled out. Idempotent."""
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"[U+{ord(c):04X}]" if _hides(c) else c for c in text)


def shortened(text: str, length: int) -> str:
    """`text` on one line in at most `length` characters, its middle left out where it is longer."""
    line = " ".join(visible(text).split())
    if len(line) <= length:
        return line
    tail = (length - 1) * 2 // 3
    return line[: length - 1 - tail] + "…" + line[len(line) - tail :]


def markdown(text: str) -> str:
    """One line of Markdown that reads as this text."""
    line = SPECIAL.sub(r"\\\g<0>", re.sub(r"\s+", " ", visible(text)))
    return "".join(ENTITIES.get(character, character) for character in line)


def code(text: str) -> str:
    """One line of text as Markdown's code, in which nothing else is read."""
    line = " ".join(visible(text).split())
    fence = "`" * (_longest_run(line) + 1)
    space = " " * (line[:1] == "`" or line[-1:] == "`")
    return f"{fence}{space}{line}{space}{fence}"


def fenced(text: str, language: str = "") -> str:
    """A code block of Markdown that no line of `text` can close."""
    shown = visible(text)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _hides(character: str) -> bool:
    if character in KEPT:
        return False
    return (
        unicodedata.category(character) in HIDDEN or character in DIRECTIONS or character in NEVER
    )
