"""Which words of a text differ from another's. The space between words counts for nothing."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

# A word or a sign, with the space before it; scripts that write without spaces go by the character.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKENS = re.compile(rf"(\s*)([{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s])")


@dataclass(frozen=True)
class Segment:
    """A piece of text with the space before it: in both, only in the first ("gone"), or only in
    the second ("new")."""

    kind: Literal["same", "gone", "new"]
    space: str
    text: str


def differences(first: str, second: str) -> list[Segment]:
    """Segments whose "same" and "new" ones join to `second`, and whose "same" and "gone" ones to
    `first`, but for the amount of space between words."""
    a, b = TOKENS.findall(first), TOKENS.findall(second)
    matcher = SequenceMatcher(None, [word for _, word in a], [word for _, word in b])
    segments = []
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag == "equal":
            segments.append(_segment("same", b[b0:b1]))
            continue
        if a1 > a0:
            segments.append(_segment("gone", a[a0:a1]))
        if b1 > b0:
            segments.append(_segment("new", b[b0:b1]))
    end = second[len(second.rstrip()) :]
    return [*segments, Segment("same", end, "")] if end else segments


def _segment(kind: Literal["same", "gone", "new"], tokens: list[tuple[str, str]]) -> Segment:
    return Segment(kind, tokens[0][0], "".join(map("".join, tokens))[len(tokens[0][0]) :])
