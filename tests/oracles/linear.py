"""A linear layer as csrc/linear.h defines it: exact integer sums, then float32 step by step.

Weights come as plain numbers: `codes` [out, in], `scale` [out, groups] and `zero`, int64 and shaped
like scale; binary ones have a `scale` [out, groups, planes] and an `offset` [out, groups] or None.
`width` inputs share a scale.
"""

import numpy as np

float32 = np.float32


def fixed_point(x):
    """x [rows, n] of one group: scales [rows], and digits [4, rows, n], least significant first."""
    largest = np.abs(x).max(1)
    # frexp gives the least exponent with |x| < 2^exponent.
    scale = np.ldexp(float32(1), np.frexp(largest)[1] - 30)
    tiny = largest < 2.0**-90
    scale[tiny] = 1
    scaled = x.astype(np.float64) / scale[:, None]
    whole = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)  # halves away from zero
    whole[tiny] = 0
    digits = []
    for _ in range(4):
        digits.append((whole + 128) % 256 - 128)
        whole = (whole - digits[-1]) // 256
    assert not whole.any()
    return scale, np.stack(digits)


def float_affine(x, codes, scale, zero, bias, width):
    """y [rows, out] for finite x [rows, in]."""

    def group(digit, k, g):
        sums = digit @ (codes[:, k] - zero[:, g, None]).T
        return lambda sx: sums.astype(float32) * (sx[:, None] * scale[:, g].astype(float32))

    return _of_digits(x, group, bias, width, len(codes))


def float_binary(x, codes, scale, offset, bias, width):
    """The same with the first scale.shape[2] planes of `codes`."""

    def group(digit, k, g):
        part = float32(0)
        for i in range(scale.shape[2]):
            plane = (codes[:, k] >> i & 1).astype(np.int64) * 2 - 1
            part = part + (digit @ plane.T).astype(float32) * scale[:, g, i].astype(float32)
        if offset is not None:
            total = digit.sum(1).astype(float32)
            part = part + total[:, None] * offset[:, g].astype(float32)
        return lambda sx: part * sx[:, None]

    return _of_digits(x, group, bias, width, len(codes))


def _of_digits(x, group, bias, width, outputs):
    sums = [np.zeros((len(x), outputs), float32) for _ in range(4)]
    for g, start in enumerate(range(0, x.shape[1], width)):
        k = slice(start, start + width)
        scale, digits = fixed_point(x[:, k])
        for d in range(4):
            sums[d] = sums[d] + group(digits[d], k, g)(scale * float32(256**d))
    y = sums[0]
    for d in range(1, 4):
        y = y + sums[d]
    y = y + (float32(0) if bias is None else bias)
    assert y.dtype == float32
    return y
