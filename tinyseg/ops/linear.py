r"""A matrix product on the last axis, and a bias: the fully connected layer, and the 1 x 1 convolution.

    y[.., o] = sum_c x[.., c] w[c, o] + b[o]               x (.., C),  w (C, O),  b (O,)  ->  y (.., O)

Backward. y is linear in each argument, so each derivative is the other factor; w and b are used at every
position of the leading axes, and their gradients are sums over all of them, m:

    dx[.., c] = sum_o dy[.., o] w[c, o]        dw[c, o] = sum_m x[m, c] dy[m, o]        db[o] = sum_m dy[m, o]

Cost for M positions: 2 M C O FLOPs forward, twice that backward, all in BLAS.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array
from tinyseg.ops import checks


class LinearCache(NamedTuple):
    x: Array  # (.., C)
    w: Array  # (C, O)
    has_bias: bool


# ---------------------------------------------------------------------------------------------------- reference


def _product_reference(a: Array, b: Array) -> Array:
    return np.einsum("mc,co->mo", a, b)


# --------------------------------------------------------------------------------------------------------- BLAS


def _product_blas(a: Array, b: Array) -> Array:
    return a @ b


# ------------------------------------------------------------------------------------------------------- public


def linear(x: Array, w: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """x @ w + b, for x with any number of leading axes.

    >>> linear(np.array([1.0, 2.0]), np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), np.array([0.0, 0.0, 0.5]))[0]
    array([1. , 2. , 3.5])
    """
    checks.floating("linear", x=x, w=w, b=b)
    checks.rank("linear", "w", w, "C O")
    if x.ndim == 0:
        raise ValueError("linear: x must have at least one axis, the channels, got a single number")
    checks.shape("linear", "x", x, (*x.shape[:-1], w.shape[0]), f"its last axis is multiplied by w {w.shape}")
    if b is not None:
        checks.shape("linear", "b", b, (w.shape[1],), "one for each output channel of w")
    product = backend.choose(x, numpy=_product_reference, numba=_product_blas)
    y = product(_matrix(x), w)
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[1]), LinearCache(x, w, b is not None)


def linear_backward(
    dy: Array, cache: LinearCache, *, need: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients (dx, dw, db); None for one that is not needed or absent."""
    x, w, has_bias = cache
    checks.upstream("linear_backward", dy, (*x.shape[:-1], w.shape[1]), x.dtype)
    product = backend.choose(dy, numpy=_product_reference, numba=_product_blas)
    dx = product(_matrix(dy), w.T).reshape(x.shape) if need[0] else None
    dw = product(_matrix(x).T, _matrix(dy)) if need[1] else None
    db = _matrix(dy).sum(axis=0, dtype=np.float64).astype(dy.dtype) if need[2] and has_bias else None
    return dx, dw, db


def _matrix(array: Array) -> Array:
    """(.., C) -> (M, C)"""
    return array.reshape(-1, array.shape[-1])
