"""Bit strings by np.packbits: a row of codes, least significant bit first, padded to bytes."""

import numpy as np


def pack(codes, bits):
    one_by_one = codes[..., None] >> np.arange(bits) & 1
    rows = one_by_one.reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return np.packbits(rows.astype(np.uint8), axis=-1, bitorder="little")


def unpack(packed, bits, n):
    one_by_one = np.unpackbits(packed, axis=-1, bitorder="little")[..., : n * bits]
    one_by_one = one_by_one.reshape(*packed.shape[:-1], n, bits)
    return (one_by_one << np.arange(bits)).sum(-1).astype(np.uint8)
