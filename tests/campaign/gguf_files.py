"""Damage to GGUF files: to the header, to what it claims, and to blocks.

magic, version, counts of tensors and keys; name, type, value of each key; name, dimensions, type,
offset of each tensor; data
"""

import struct

from tests.campaign import documents

SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
TEXT, ARRAY = 8, 9
WHOLE = (0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)
FLOATS = (float("nan"), float("inf"), -1.0, 0.0, 1e30)
NAMES = (b"\x1b[2J", b"[red]", b"../../outside", b"a\nb", b"\xff\xfe", b"\0", b"{{ 1 }}", b"blk.0.")
HALVES = (0x7E00, 0x7C00, 0xFC00, 0x0000, 0x8000, 0x7BFF, 0x0001)  # NaN, infinities, zeros, ends


class Header:
    """Where each number (start, struct code) and each text (start, length) stands, and the data."""

    def __init__(self, stored):
        self.stored, self.at = stored, 4
        self.numbers, self.texts = [], []
        _, tensors, keys = self.number("I"), self.number("Q"), self.number("Q")
        for _ in range(keys):
            self.text()
            self.value(self.number("I"))
        for _ in range(tensors):
            self.text()
            for _ in range(self.number("I")):
                self.number("Q")
            self.number("I")
            self.number("Q")

    def number(self, code):
        self.numbers.append((self.at, code))
        (value,) = struct.unpack_from("<" + code, self.stored, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self):
        length = self.number("Q")
        self.texts.append((self.at, length))
        self.at += length

    def value(self, kind):
        if kind == TEXT:
            self.text()
        elif kind == ARRAY:
            each = self.number("I")
            for _ in range(self.number("Q")):
                self.value(each)
        else:
            self.number(SCALARS[kind])


def number(random, stored):
    """One number of the header is another one."""
    start, code = random.choice(Header(stored).numbers)
    value = random.choice(FLOATS if code in "fd" else WHOLE)
    if code not in "fd":
        value &= 2 ** (8 * struct.calcsize(code)) - 1
        code = {"b": "B", "h": "H", "i": "I", "q": "Q", "?": "B"}.get(code, code)
    return stored[:start] + struct.pack("<" + code, value) + stored[start + struct.calcsize(code) :]


def name(random, stored):
    """A text of the header is another one, of another length too."""
    start, length = random.choice(Header(stored).texts)
    new = random.choice(NAMES) + random.choice((b"", stored[start : start + length]))
    rest = stored[start + length :]
    return stored[: start - 8] + struct.pack("<Q", len(new)) + new + rest


def swapped(random, stored):
    """Two texts of the header have changed places, two tensors or keys that is."""
    (a, m), (b, n) = sorted(random.sample(Header(stored).texts, 2))
    first, second = stored[a - 8 : a + m], stored[b - 8 : b + n]
    return stored[: a - 8] + second + stored[a + m : b - 8] + first + stored[b + n :]


def half(random, stored):
    """A float16 somewhere in the blocks becomes NaN, infinite, 0 or an extreme; most hit codes."""
    start = random.randrange(Header(stored).at, len(stored) - 2)
    return stored[:start] + struct.pack("<H", random.choice(HALVES)) + stored[start + 2 :]


def data(random, stored):
    """One bit behind the header."""
    start = Header(stored).at
    return stored[:start] + documents.flipped(random, stored[start:])


KINDS = (
    number,
    number,
    number,
    name,
    name,
    swapped,
    half,
    data,
    documents.truncated,
    documents.flipped,
    documents.inserted,
    documents.emptied,
)
