"""Binary codes of one group of weights w [n]: w ≈ Σᵢ αᵢ bᵢ + o. All in float64."""

import itertools

import numpy as np


def greedy(w, planes, with_offset):
    """(α, o): αᵢ = mean |residual|, plane by plane."""
    offset = w.mean() if with_offset else 0.0
    residual, alpha = w - offset, []
    for _ in range(planes):
        alpha.append(np.abs(residual).mean())
        residual = residual - alpha[-1] * np.where(residual >= 0, 1, -1)
    return np.array(alpha), offset


def greedy_bits(w, alpha, offset):
    """bᵢ = sign(residual) as 0 and 1, [planes, n]; sign(0) = +1."""
    residual, bits = w - offset, []
    for a in alpha:
        bits.append(residual >= 0)
        residual = residual - a * np.where(bits[-1], 1, -1)
    return np.array(bits).astype(np.uint8)


def levels(alpha, offset):
    """All 2^b values Σ ±αᵢ + o, ascending."""
    signs = itertools.product((-1.0, 1.0), repeat=len(alpha))
    return np.sort([np.dot(sign, alpha) + offset for sign in signs])


def nearest(w, alpha, offset):
    """The nearest level of every weight, by trying them all; halfway goes up."""
    values = levels(alpha, offset)
    distance = np.abs(w[:, None] - values[None, :])
    last = len(values) - 1 - distance[:, ::-1].argmin(1)
    return values[last]


def squared_error(w, alpha, offset):
    return ((w - nearest(w, alpha, offset)) ** 2).sum()


def least_squares(w, bits, with_offset):
    """(α, o) of least squared error for given bits [planes, n], by numpy.linalg.lstsq."""
    design = bits.astype(np.float64).T * 2 - 1
    if with_offset:
        design = np.column_stack([design, np.ones(len(w))])
    solution = np.linalg.lstsq(design, w, rcond=None)[0]
    return solution[: len(bits)], solution[-1] if with_offset else 0.0


def values(bits, alpha, offset):
    """o + α₀b₀ + α₁b₁ + …, in that order and in the dtype of α."""
    total = np.full(bits.shape[1], offset, alpha.dtype)
    for plane, a in zip(bits, alpha, strict=True):
        total = total + np.where(plane, a, -a)
    return total
