"""AutoRound in NumPy, with its gradients written out: one weight, one scale per row."""

import numpy as np


def signed_descent(weight, hessian, bits, iterations):
    """The decoded weight of least error among all iterates, for zero-point codes."""
    w, levels = weight.astype(np.float64), 2**bits - 1
    low = np.minimum(w.min(1, keepdims=True), 0)
    high = np.maximum(w.max(1, keepdims=True), 0)
    v, alpha, beta = np.zeros_like(w), np.ones_like(low), np.ones_like(low)
    best, least = None, np.inf
    for t in range(iterations + 1):
        s = ((high * alpha - low * beta) / levels).astype(np.float16).astype(np.float64)
        free = np.rint(-low * beta / s)
        z = np.clip(free, 0, levels)
        x = np.rint(w / s + v) + z
        q = np.clip(x, 0, levels)
        decoded = s * (q - z)
        error = np.trace((decoded - w) @ hessian @ (decoded - w).T)
        if error < least:
            best, least = decoded, error
        # Derivatives of ŵ, as if rounding were not there.
        inside = (x >= 0) & (x <= levels)
        by_z = s * (inside - 1.0)
        z_moves = (free >= 0) & (free <= levels)
        by_s = (q - z) - inside * w / s + by_z * z_moves * low * beta / s**2
        g = 2 * (decoded - w) @ hessian
        over_s = (g * by_s).sum(1, keepdims=True)
        over_z = (g * by_z).sum(1, keepdims=True) * z_moves
        rate = (1 - t / iterations) / iterations
        v = np.clip(v - rate * np.sign(g * s * inside), -0.5, 0.5)
        alpha = np.clip(alpha - rate * np.sign(over_s * high), 0.5, 1)
        beta_gradient = -over_s * low / levels - over_z * low / s
        beta = np.clip(beta - rate * np.sign(beta_gradient), 0.5, 1)
    return best
