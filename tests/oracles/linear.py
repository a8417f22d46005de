"""A linear layer as csrc/linear.h defines it: exact integer sums, then float32 step by step. And
one of float activations as csrc/linear_float.h does: one fused multiply-add after the other.

Weights come as plain numbers: `codes` [out, in], `scale` [out, groups] and `zero`, int64 and shaped
like scale; binary ones have a `scale` [out, groups, planes]. Either has an `offset` [out, groups]
or None.
`width` inputs share a scale.
"""

import numpy as np

float32 = np.float32


def fixed_point(x):
    """x [rows, n] of one group: scales [rows], and limbs [4, rows, n], least significant first."""
    largest = np.abs(x).max(1)
    # frexp gives the least exponent with |x| < 2^exponent.
    scale = np.ldexp(float32(1), np.frexp(largest)[1] - 30)
    tiny = largest < 2.0**-90
    scale[tiny] = 1
    scaled = x.astype(np.float64) / scale[:, None]
    whole = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)  # halves away from zero
    whole[tiny] = 0
    limbs = []
    for _ in range(4):
        limbs.append((whole + 128) % 256 - 128)
        whole = (whole - limbs[-1]) // 256
    assert not whole.any()
    return scale, np.stack(limbs)


def float_affine(x, codes, scale, zero, bias, width, offset=None):
    """y [rows, out] for finite x [rows, in]."""

    def group(limb, k, g):
        sums = limb @ (codes[:, k] - zero[:, g, None]).T
        if offset is not None:
            part = sums.astype(float32) * scale[:, g].astype(float32)
            part = part + limb.sum(1).astype(float32)[:, None] * offset[:, g].astype(float32)
            return lambda sx: part * sx[:, None]
        return lambda sx: sums.astype(float32) * (sx[:, None] * scale[:, g].astype(float32))

    return _of_limbs(x, group, bias, width, len(codes))


def float_binary(x, codes, scale, offset, bias, width):
    """The same with the first scale.shape[2] planes of `codes`."""

    def group(limb, k, g):
        part = float32(0)
        for i in range(scale.shape[2]):
            plane = (codes[:, k] >> i & 1).astype(np.int64) * 2 - 1
            part = part + (limb @ plane.T).astype(float32) * scale[:, g, i].astype(float32)
        if offset is not None:
            total = limb.sum(1).astype(float32)
            part = part + total[:, None] * offset[:, g].astype(float32)
        return lambda sx: part * sx[:, None]

    return _of_limbs(x, group, bias, width, len(codes))


def _of_limbs(x, group, bias, width, outputs):
    sums = [np.zeros((len(x), outputs), float32) for _ in range(4)]
    for g, start in enumerate(range(0, x.shape[1], width)):
        k = slice(start, start + width)
        scale, limbs = fixed_point(x[:, k])
        for d in range(4):
            sums[d] = sums[d] + group(limbs[d], k, g)(scale * float32(256**d))
    y = sums[0]
    for d in range(1, 4):
        y = y + sums[d]
    y = y + (float32(0) if bias is None else bias)
    assert y.dtype == float32
    return y


def fma(a, b, c):
    """a b + c of float32, rounded once: to odd in float64, which has more than twice the limbs."""
    product, c = a.astype(np.float64) * b, np.asarray(c, np.float64)
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = total.view(np.int64).copy()
    bits -= (error != 0) & ((error > 0) != (total > 0))  # towards zero
    bits |= error != 0
    return bits.view(np.float64).astype(float32)


def decoded(codes, scale, zero, offset, width):
    """The float32 weight [out, in]; `zero` is None for a binary one."""
    group = np.arange(codes.shape[1]) // width
    if zero is not None:
        w = scale[:, group].astype(float32) * (codes - zero[:, group]).astype(float32)
        return w if offset is None else w + offset[:, group].astype(float32)
    w = np.zeros(codes.shape, float32)
    if offset is not None:
        w = offset[:, group].astype(float32)
    for i in range(scale.shape[2]):
        alpha = scale[:, group, i].astype(float32)
        w = w + np.where(codes >> i & 1, alpha, -alpha)
    return w


def float_fma(x, w, bias, width):
    """y [rows, out] for finite x [rows, in] and the float32 weight w [out, in]."""
    xs, ws = [], []
    for start in range(0, x.shape[1], width):
        part = slice(start, min(start + width, x.shape[1]))
        pad = (0, 0), (0, -(part.stop - start) % 32)
        xs.append(np.pad(x[:, part], pad))
        ws.append(np.pad(w[:, part], pad))
    x, w = np.concatenate(xs, 1), np.concatenate(ws, 1)
    total = np.zeros((len(x), len(w)), float32)
    for span in range(0, x.shape[1], 1024):
        for i in range(4):
            acc = np.zeros_like(total)
            for k in range(span + i, min(span + 1024, x.shape[1]), 4):
                acc = fma(x[:, k, None], w[:, k], acc)
            total = total + acc
    return total + (float32(0) if bias is None else bias)
