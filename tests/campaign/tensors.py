"""Damage to safetensors files: to the header, to what it claims, and to the numbers.

8 bytes: length of the header; the header, JSON: name -> dtype, shape, data_offsets; the data
"""

import json
import pickle
import struct

import numpy as np

from tests.campaign import documents

FLOATS = {"F16": np.float16, "F32": np.float32}
NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 65504.0, 1e-7)
DTYPES = ("F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "X", "", None)
SIZES = (0, -1, 1, 2**31, 2**40, 2**63, 2**64, 1.5, "1", None)
NAMES = (
    "",
    "x" * 10_000,
    "\x1b[2J",
    "[red]a[/red]",
    "../../outside",
    "a\nb",
    "__metadata__",
    "\u202e",
)


class Canary:
    def __reduce__(self):
        return (exec, ("open('CANARY', 'w')",))


def split(stored):
    (length,) = struct.unpack("<Q", stored[:8])
    return json.loads(stored[8 : 8 + length]), stored[8 + length :]


def join(header, data, dump=json.dumps):
    text = dump(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_of(random, header):
    return random.choice([name for name in header if name != "__metadata__"])


def length(random, stored):
    """A header that says to be longer than the file, or than anything."""
    claim = random.choice((0, 1, len(stored) + 1, 10**8, 2**40, 2**63, 2**64 - 1))
    return struct.pack("<Q", claim) + stored[8:]


def entry(random, stored):
    """One tensor's dtype, shape or place in the file."""
    header, data = split(stored)
    one = header[tensor_of(random, header)]
    key = random.choice(("dtype", "shape", "data_offsets", "gone"))
    if key == "dtype":
        one["dtype"] = random.choice(DTYPES)
    elif key == "shape" and one["shape"]:
        one["shape"][random.randrange(len(one["shape"]))] = random.choice(SIZES)
    elif key == "data_offsets":
        one["data_offsets"][random.randrange(2)] = random.choice(SIZES)
    else:
        one.pop(random.choice(("dtype", "shape", "data_offsets")))
    return join(header, data)


def claims(random, stored):
    """A tensor of another shape that the file has the bytes for, or claims to have."""
    header, data = split(stored)
    one = header[tensor_of(random, header)]
    one["shape"] = random.choice(
        (one["shape"][::-1], [int(np.prod(one["shape"]))], [1, *one["shape"]], [10**6] * 5)
    )
    return join(header, data)


def names(random, stored):
    header, data = split(stored)
    first = tensor_of(random, header)
    how = random.choice(("drop", "rename", "swap", "repeat"))
    if how == "rename":
        header[random.choice(NAMES)] = header.pop(first)
    elif how == "swap":
        second = tensor_of(random, header)
        header[first], header[second] = header[second], header[first]
    elif how == "repeat":
        header["more"] = header[first]
    else:
        header.pop(first)
    return join(header, data)


def header_document(random, stored):
    header, data = split(stored)
    text = documents.damage(documents.JSON, random.getrandbits(32), json.dumps(header).encode())[1]
    return struct.pack("<Q", len(text)) + text + data


def numbers(random, stored):
    """One float that is none, or that no scale can be."""
    header, data = split(stored)
    floats = [n for n in header if n != "__metadata__" and header[n]["dtype"] in FLOATS]
    floats = [n for n in floats if header[n]["data_offsets"][0] < header[n]["data_offsets"][1]]
    one = header[random.choice(floats)]
    start, end = one["data_offsets"]
    values = np.frombuffer(data[start:end], FLOATS[one["dtype"]]).copy()
    with np.errstate(over="ignore"):
        values[random.randrange(len(values))] = random.choice(NUMBERS)
    return join(header, data[:start] + values.tobytes() + data[end:])


def bits(random, stored):
    """One bit of the numbers."""
    header, data = split(stored)
    return join(header, documents.flipped(random, data))


def blocks(random, stored):
    """Two pieces of the data that have changed places, or one that is all zeros or all ones."""
    header, data = split(stored)
    size = min(random.choice((1, 64, 4096)), len(data) // 2)
    a, b = sorted(random.randrange(len(data) - size + 1) for _ in range(2))
    fill = random.choice((None, b"\0", b"\xff"))
    if fill is not None:
        return join(header, data[:a] + fill * size + data[a + size :])
    if b < a + size:
        return join(header, data)
    return join(
        header,
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :],
    )


def pickled(random, stored):
    return pickle.dumps(Canary())


KINDS = (
    length,
    entry,
    entry,
    claims,
    names,
    header_document,
    numbers,
    numbers,
    bits,
    bits,
    blocks,
    pickled,
    documents.truncated,
    documents.flipped,
    documents.inserted,
    documents.emptied,
)
