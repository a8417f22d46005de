"""Affine codes, unit by unit in float32: w ≈ s · (q − z)."""

import numpy as np

from tests.oracles.granularity import units


def stored(scale):
    """float16 where every scale is a normal float16 number, else float32."""
    half = np.finfo(np.float16)
    fits = (scale >= half.smallest_normal) & (scale <= half.max)
    return scale.astype(np.float16 if fits.all() else np.float32)


def safe(scale):
    return stored(np.where(scale < np.finfo(np.float32).smallest_normal, np.float32(1), scale))


def ranges(weight, size):
    """(min(w, 0), max(w, 0)) of each unit, float32 [rows, groups]."""
    shape, each = units(weight.shape, size)
    low, high = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for unit, part in each:
        low[unit], high[unit] = min(weight[part].min(), 0), max(weight[part].max(), 0)
    return low, high


def symmetric(weight, bits, size, reach="absmax"):
    """(stored scale, codes) of the absmax scheme; codes are int8 at 8 bits, else q + 2^(b−1)."""
    low, high = ranges(weight, size)
    half = 1 << (bits - 1)
    if reach == "minmax":
        steps, lowest = np.float32(2 * half - 1), -half
        scale = safe(high / steps - low / steps)
    else:
        scale, lowest = safe(np.maximum(-low, high) / np.float32(half - 1)), 1 - half
    codes = np.clip(quotients(weight, scale, size), lowest, half - 1)
    return scale, codes.astype(np.int8) if bits == 8 else (codes + half).astype(np.uint8)


def asymmetric(weight, bits, size):
    """(stored scale, zero point, codes) of the zero-point scheme."""
    low, high = ranges(weight, size)
    steps = np.float32((1 << bits) - 1)
    scale = safe(high / steps - low / steps)
    zero_point = np.clip(np.rint(-low / scale.astype(np.float32)), 0, steps)
    codes = np.clip(quotients(weight, scale, size, zero_point), 0, steps)
    return scale, zero_point.astype(np.uint8), codes.astype(np.uint8)


def quotients(weight, scale, size, zero_point=None):
    """round(w / s) + z before anything is clipped: float32, halves to even."""
    q = np.zeros(weight.shape, np.float32)
    for unit, part in units(weight.shape, size)[1]:
        q[part] = np.rint(weight[part] / np.float32(scale[unit]))
        if zero_point is not None:
            q[part] += zero_point[unit]
    return q


def spread(parameter, shape, size):
    """One parameter per unit -> one per weight."""
    full = np.zeros(shape, parameter.dtype)
    for unit, part in units(shape, size)[1]:
        full[part] = parameter[unit]
    return full
