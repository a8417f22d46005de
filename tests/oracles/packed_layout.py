"""Weights in the packed layout, vector by vector, as the text of csrc/packed_layout.h has them."""

import numpy as np

# A code from its lowest bit on, in fields of 8, 4, 2 or 1 bits.
FIELDS = {8: [8], 7: [4, 2, 1], 6: [4, 2], 5: [4, 1], 4: [4], 3: [2, 1], 2: [2]}


def pack(codes, bits, binary, width):
    """Codes [out, in], `width` inputs to a group, as the bytes of all panels."""
    fields = [1] * bits if binary else FIELDS[bits]
    rows = np.pad(codes, ((0, -len(codes) % 16), (0, 0)))
    vectors = []
    for panel in np.split(rows, len(rows) // 16):
        for start in range(0, codes.shape[1], width):
            of_group = panel[:, start : start + width]
            for first in range(0, of_group.shape[1], 32):
                vectors += block(of_group[:, first : first + 32], fields)
    return np.concatenate(vectors).astype(np.uint8)


def block(codes, fields):
    """The vectors of up to 32 inputs of 16 rows."""
    codes = np.pad(codes, ((0, 0), (0, 32 - codes.shape[1]))).astype(int)
    steps = [codes[:, 4 * s : 4 * s + 4].flatten() for s in range(8)]
    vectors, shift = [], 0
    for bits in fields:
        field = [step >> shift & ((1 << bits) - 1) for step in steps]
        for j in range(bits):
            shared = [field[j + bits * i] << (bits * i) for i in range(8 // bits)]
            vectors.append(sum(shared))
        shift += bits
    return vectors


def rows(parameter, outputs):
    """Parameters [panels, …, 16] as rows [out, …], without those that pad the last panel."""
    return np.concatenate([np.moveaxis(panel, -1, 0) for panel in parameter])[:outputs]
