"""The quadratic error of a weight, and its parts, by dense formulas. All in float64, [out, in]."""

import numpy as np


def error(away, hessian):
    """tr(E H Eᵀ)."""
    return np.trace(away @ hessian @ away.T)


def damped(hessian, damping):
    return hessian + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))


def best_of_the_rest(weight, coded, hessian, done):
    """Where the inputs `done` are coded, the weights that make the error of the others least."""
    best, left = weight.copy(), np.setdiff1d(np.arange(len(hessian)), done)
    away = weight[:, done] - coded[:, done]
    cross = hessian[np.ix_(done, left)]
    best[:, left] += away @ cross @ np.linalg.inv(hessian[np.ix_(left, left)])
    return best


def remaining(hessian, part, later):
    """The error in the inputs `part`, the inputs `later` being the best for them."""
    cross = hessian[np.ix_(part, later)]
    inverse = np.linalg.inv(hessian[np.ix_(later, later)])
    return hessian[np.ix_(part, part)] - cross @ inverse @ cross.T


def search(wanted, hessian, values, start):
    """Coordinate descent of one row from `start`, trying every level of `values` by its error."""
    found = start.copy()
    for j in range(len(found)):
        tries = np.repeat(found[None], len(values), 0)
        tries[:, j] = values
        away = tries - wanted
        found[j] = values[np.argmin(np.sum((away @ hessian) * away, 1))]
    return found


def best_parameters_error(row, bits, hessian, widths, with_offset):
    """The least error of one row over all α and o, for bits [planes, in] and groups of `widths`."""
    columns, at = [], 0
    for width in widths:
        inside = np.zeros(len(row))
        inside[at : at + width] = 1
        columns += [inside * (2.0 * plane - 1) for plane in bits] + [inside] * with_offset
        at += width
    root = np.linalg.cholesky(hessian).T
    basis = np.stack(columns, 1)
    solution = np.linalg.lstsq(root @ basis, root @ row, rcond=None)[0]
    away = (row - basis @ solution)[None]
    return error(away, hessian)
