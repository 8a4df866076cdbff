r"""A matrix product on the last axis, and a bias: the fully connected layer, and the 1 x 1 convolution.

    y[.., o] = sum_c x[.., c] w[c, o] + b[o]               x (.., C),  w (C, O),  b (O,)  ->  y (.., O)

Backward. y is linear in each argument, so each derivative is the other factor; w and b are used at every
position of the leading axes, and their gradients are sums over all of them, m:

    dx[.., c] = sum_o dy[.., o] w[c, o]        dw[c, o] = sum_m x[m, c] dy[m, o]        db[o] = sum_m dy[m, o]

Cost for M positions: 2 M C O FLOPs forward, twice that backward, all in BLAS. On a GPU this is a 1 x 1 convolution
of an image of one row and M columns, and runs in its kernels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks, geometry
from tinyseg.ops.conv2d import algorithms, bias_gradient


class LinearCache(NamedTuple):
    x: Array  # (.., C)
    w: Array  # (C, O)
    has_bias: bool


# ---------------------------------------------------------------------------------------------------- reference


def _product_reference(a: Array, b: Array) -> Array:
    return np.einsum("mc,co->mo", a, b)


def _forward_reference(x: Array, w: Array, b: Array | None) -> Array:
    return _with_bias(_product_reference(x, w), b)


def _backward_reference(dy: Array, x: Array, w: Array, need: Sequence[bool]) -> list[Array | None]:
    dx = _product_reference(dy, w.T) if need[0] else None
    dw = _product_reference(x.T, dy) if need[1] else None
    return [dx, dw, _sum_over_positions(dy) if need[2] else None]


def _with_bias(y: Array, b: Array | None) -> Array:
    if b is not None:
        y += b
    return y


def _sum_over_positions(dy: Array) -> Array:
    return dy.sum(axis=0, dtype=np.float64).astype(dy.dtype)


# --------------------------------------------------------------------------------------------------------- BLAS


def _forward_blas(x: Array, w: Array, b: Array | None) -> Array:
    return _with_bias(x @ w, b)


def _backward_blas(dy: Array, x: Array, w: Array, need: Sequence[bool]) -> list[Array | None]:
    dx = dy @ w.T if need[0] else None
    dw = x.T @ dy if need[1] else None
    return [dx, dw, _sum_over_positions(dy) if need[2] else None]


# --------------------------------------------------------------------------------------------------------- CUDA


def _forward_cuda(x: Array, w: Array, b: Array | None) -> Array:
    kernels, (x, w), window = _as_convolution(w, x, w)
    return kernels.forward(x, w, b, window, 1).reshape(x.shape[2], -1)


def _backward_cuda(dy: Array, x: Array, w: Array, need: Sequence[bool]) -> list[Array | None]:
    kernels, (dy, x, w), window = _as_convolution(w, dy, x, w)
    dx = kernels.data_gradient(dy, w, None, window, 1).reshape(x.shape[2:]) if need[0] else None
    dw = kernels.weight_gradient(x, dy, window, 1).reshape(w.shape[2:]) if need[1] else None
    return [dx, dw, bias_gradient(dy) if need[2] else None]


def _as_convolution(w: Array, *matrices: Array):
    """The module of kernels, matrices (M, C) as images (1, 1, M, C) or weights (1, 1, C, O), and the window."""
    images = [cuda.reshape(matrix, (1, 1, *matrix.shape)) for matrix in matrices]
    window = geometry.window("linear", images[0].shape[1:3], 1, 1, 0)
    return algorithms.choose("auto", images[0], cuda.reshape(w, (1, 1, *w.shape)), 1), images, window


# ------------------------------------------------------------------------------------------------------- public


def linear(x: Array, w: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """x @ w + b, for x with any number of leading axes.

    >>> linear(np.array([1.0, 2.0]), np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), np.array([0.0, 0.0, 0.5]))[0]
    array([1. , 2. , 3.5])
    """
    checks.floating("linear", x=x, w=w, b=b, parameters=("w", "b"))
    checks.rank("linear", "w", w, "C O")
    if x.ndim == 0:
        raise ValueError("linear: x must have at least one axis, the channels, got a single number")
    checks.shape("linear", "x", x, (*x.shape[:-1], w.shape[0]), f"its last axis is multiplied by w {w.shape}")
    if b is not None:
        checks.shape("linear", "b", b, (w.shape[1],), "one for each output channel of w")
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_blas, cuda=_forward_cuda)
    y = forward(_matrix(x), w, b)
    return y.reshape(*x.shape[:-1], w.shape[1]), LinearCache(x, w, b is not None)


def linear_backward(
    dy: Array, cache: LinearCache, *, need: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients (dx, dw, db); None for one that is not needed or absent."""
    x, w, has_bias = cache
    checks.upstream("linear_backward", dy, (*x.shape[:-1], w.shape[1]), x.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_blas, cuda=_backward_cuda)
    dx, dw, db = backward(_matrix(dy), _matrix(x), w, (need[0], need[1], need[2] and has_bias))
    return None if dx is None else dx.reshape(x.shape), dw, db


def _matrix(array: Array) -> Array:
    """(.., C) -> (M, C)"""
    return cuda.reshape(array, (-1, array.shape[-1]))
