"""Text from models, files and people, made safe to show: what it hides becomes visible.

Control characters and halves of surrogate pairs cannot stand in HTML, SVG or UTF-8; directional
overrides and embeddings reorder what follows them. Each is shown as its code point, [U+202E] say.
Tabs and line ends stay.
"""

import unicodedata

# Control, surrogate, and the format characters that open or close a direction.
HIDDEN = {"Cc", "Cs"}
DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
KEPT = set("\t\n")
# Not characters, and refused by XML.
NEVER = {"\ufffe", "\uffff"}


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


def _hides(character: str) -> bool:
    if character in KEPT:
        return False
    return (
        unicodedata.category(character) in HIDDEN or character in DIRECTIONS or character in NEVER
    )
