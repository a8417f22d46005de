"""What short sequences of vector instructions do at most on one core: what a product's speed is a
share of. They are assembled by gcc when they are asked for, and run in registers alone."""

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ACCUMULATORS = 10  # registers 0 … 9; 10 … 13 hold products, 14 and 15 what is multiplied
LOOPS, ROUNDS = 100_000, 60


class Sequence(NamedTuple):
    """Instructions for sums in {a} by way of {p}, and the products that they add, both for vectors
    of 32 bytes."""

    lines: tuple[str, ...]
    products: int


SEQUENCES = {
    "float32 multiply-add": Sequence(("vfmadd231ps {y}, {x}, {a}",), 8),
    "bytes, sums in 16 bits": Sequence(("vpmaddubsw {y}, {x}, {p}", "vpaddw {p}, {a}, {a}"), 32),
    "bytes, sums in 32 bits": Sequence(
        ("vpmaddubsw {y}, {x}, {p}", "vpmaddwd {y}, {p}, {p}", "vpaddd {p}, {a}, {a}"), 32
    ),
    # Each multiplication is worth two products (csrc/dot_pairs.inl).
    "16 bits, half the multiplications": Sequence(
        (
            "vpaddw {y}, {x}, {p}",
            "vpaddw {x}, {y}, {q}",
            "vpmaddwd {q}, {p}, {p}",
            "vpaddd {p}, {a}, {a}",
        ),
        32,
    ),
    "lookups": Sequence(("vpshufb {y}, {x}, {p}", "vpaddb {p}, {a}, {a}"), 64),
    "vpdpbusd": Sequence(("{vex} vpdpbusd {y}, {x}, {a}",), 32),
}


def assembly(lines: tuple[str, ...], bytes_per_vector: int) -> str:
    """A function that repeats the lines for all accumulators as often as its argument says."""
    wide = bytes_per_vector == 64

    def register(number: int) -> str:
        return f"%{'zmm' if wide else 'ymm'}{number}"

    body = [
        line.format(
            a=register(i),
            p=register(10 + i % 2),
            q=register(12 + i % 2),
            x=register(14),
            y=register(15),
            vex="" if wide else "{vex}",
        )
        for i in range(ACCUMULATORS)
        for line in lines
    ]
    return "\n".join(["vzeroall", "1:", *body, "dec %rdi", "jnz 1b", "vzeroupper", "ret"])


def macs_per_second(bytes_per_vector: Mapping[str, int]) -> dict[str, float]:
    """Of the sequences that are named, with vectors of so many bytes; none without gcc."""
    if shutil.which("gcc") is None:
        return {}
    text = [".text"]
    for number, (name, size) in enumerate(bytes_per_vector.items()):
        entry = f"sequence_{number}"
        text += [f".globl {entry}", f"{entry}:", assembly(SEQUENCES[name].lines, size)]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "limits.s"), Path(folder, "limits.so")
        source.write_text("\n".join([*text, '.section .note.GNU-stack,"",@progbits', ""]))
        subprocess.run(["gcc", "-shared", "-o", library, source], check=True)
        compiled = ctypes.CDLL(str(library))
        for number, (name, size) in enumerate(bytes_per_vector.items()):
            run = compiled[f"sequence_{number}"]
            run.argtypes, run.restype = [ctypes.c_long], None
            taken = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                run(LOOPS)
                taken.append(time.perf_counter() - start)
            products = SEQUENCES[name].products * size // 32
            found[name] = ACCUMULATORS * LOOPS * products / min(taken)
    return found
