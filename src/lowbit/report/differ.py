"""Which words of a text differ from another's."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

# A run of space, one sign, or a word; scripts that write without spaces go by the character.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKENS = re.compile(rf"\s+|[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")


@dataclass(frozen=True)
class Segment:
    """A piece of text: in both, only in the first ("gone"), or only in the second ("new")."""

    kind: Literal["same", "gone", "new"]
    text: str


def differences(first: str, second: str) -> list[Segment]:
    """Segments whose "same" and "gone" texts join to `first`, and "same" and "new" to `second`."""
    a, b = TOKENS.findall(first), TOKENS.findall(second)
    segments = []
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b).get_opcodes():
        if tag == "equal":
            segments.append(Segment("same", "".join(a[a0:a1])))
            continue
        if a1 > a0:
            segments.append(Segment("gone", "".join(a[a0:a1])))
        if b1 > b0:
            segments.append(Segment("new", "".join(b[b0:b1])))
    return segments
