"""What shares a scale: `size` is "tensor", "channel", or a number of consecutive inputs."""

import numpy as np


def units(shape, size):
    """The shape [rows, groups] of a parameter, and the pairs (its index, the weights it serves)."""
    rows, columns = shape
    if size == "tensor":
        return (1, 1), [((0, 0), np.s_[:, :])] if rows else []
    width = columns if size == "channel" else size
    starts = range(0, columns, width)
    each = [
        ((row, group), np.s_[row : row + 1, start : start + width])
        for row in range(rows)
        for group, start in enumerate(starts)
    ]
    return (rows, len(starts)), each
