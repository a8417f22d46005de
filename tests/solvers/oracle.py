"""Error compensation in NumPy: one weight at a time, with explicit inverses and no shortcuts."""

import numpy as np


def compensated(weight, hessian, damping, grid, order):
    """Optimal brain quantization in a given order of columns (Frantar et al. 2022, equation 4).

    grid(columns, rows) -> (scale, zero) for the columns of a group, when the sweep first meets it.
    """
    w = weight.astype(np.float64).copy()
    H = hessian + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    q = np.zeros_like(w)
    left = list(order)
    while left:
        j = left[0]
        inverse = np.linalg.inv(H[np.ix_(left, left)])
        scale, zero, highest = grid(j, w)
        q[:, j] = np.clip(np.rint(w[:, j] / scale) + zero, 0, highest)
        error = w[:, j] - scale * (q[:, j] - zero)
        w[:, left] -= np.outer(error / inverse[0, 0], inverse[0])
        w[:, j] = scale * (q[:, j] - zero)
        left = left[1:]
    return q, w


def output_error(weight, decoded, hessian):
    difference = weight.astype(np.float64) - decoded.astype(np.float64)
    return np.trace(difference @ hessian.astype(np.float64) @ difference.T)
