"""Blocks of GGUF of which every bit is random."""

import numpy as np

from lowbit.interop.gguf.blocks import TYPES


def random_blocks(name: str, rows: int = 3, blocks: int = 2) -> np.ndarray:
    """Every bit random, but for the float16 numbers, which are finite."""
    kind = TYPES[name]
    generator = np.random.default_rng(kind.number)
    raw = generator.integers(0, 256, (rows, blocks, kind.bytes), dtype=np.uint8)
    at = 0
    for field, size in kind.fields.items():
        if field in ("d", "m"):
            halves = generator.normal(size=(rows, blocks, 1)).astype(np.float16)
            raw[..., at : at + size] = halves.view(np.uint8)
        at += size
    return raw.reshape(rows, -1)
