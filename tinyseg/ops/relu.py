r"""Rectified linear units, and the leaky kind.

    relu        y[i] = x[i]  if x[i] > 0  else  0
    leaky_relu  y[i] = x[i]  if x[i] > 0  else  slope * x[i]

Backward. Each output depends on one input, with derivative 1 or `slope` (0 for relu):

    dx[i] = dy[i]  if x[i] > 0  else  slope * dy[i]

At x = 0 the function has no derivative; the code takes the left one, as do the usual frameworks. NaN stays NaN.
With slope > 0 the sign of y is the sign of x, so the cache holds y alone, which the next layer keeps anyway.

Cost: 1 comparison and 8 bytes of traffic per float32 element forward, 12 bytes backward.

Sources: Nair & Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010;
Maas, Hannun & Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML workshop 2013, eq. 2.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks


class ReluCache(NamedTuple):
    y: Array  # the result, any shape
    slope: float  # 0 for relu


# ---------------------------------------------------------------------------------------------------- reference


def _forward_reference(x: Array, slope: float) -> Array:
    return np.maximum(x, 0) if slope == 0 else np.where(x > 0, x, x.dtype.type(slope) * x)


def _backward_reference(dy: Array, y: Array, slope: float) -> Array:
    return np.where(y > 0, dy, dy.dtype.type(slope) * dy)


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _forward_kernel(x, slope, y):
    for i in prange(x.size):
        if x[i] <= 0:
            y[i] = slope * x[i] if slope > 0 else 0  # not 0 * x: that is NaN for minus infinity
        else:
            y[i] = x[i]


@kernel
def _backward_kernel(dy, y, slope, dx):
    for i in prange(dy.size):
        dx[i] = dy[i] if y[i] > 0 else slope * dy[i]


def _forward_numba(x: Array, slope: float) -> Array:
    x = np.asarray(x, order="C")
    y = np.empty_like(x)
    _forward_kernel(x.reshape(-1), x.dtype.type(slope), y.reshape(-1))
    return y


def _backward_numba(dy: Array, y: Array, slope: float) -> Array:
    dy = np.asarray(dy, order="C")
    dx = np.empty_like(dy)
    _backward_kernel(dy.reshape(-1), np.ascontiguousarray(y).reshape(-1), dy.dtype.type(slope), dx.reshape(-1))
    return dx


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16)


def _forward_cuda(x: Array, slope: float) -> Array:
    x = cuda.contiguous(x)
    y = cuda.empty(x.shape, x.dtype)
    _cuda.launch("relu_forward", x, slope, y, x.size, threads=cuda.quads(x.size))
    return y


def _backward_cuda(dy: Array, y: Array, slope: float) -> Array:
    dy, y = cuda.contiguous(dy), cuda.contiguous(y)
    dx = cuda.empty(dy.shape, dy.dtype)
    _cuda.launch("relu_backward", dy, y, slope, dx, dy.size, threads=cuda.quads(dy.size))
    return dx


# ------------------------------------------------------------------------------------------------------- public


def relu(x: Array) -> tuple[Array, ReluCache]:
    """max(x, 0), element by element. Any shape.

    >>> relu(np.array([-2.0, 3.0]))[0]
    array([0., 3.])
    """
    checks.floating("relu", x=x)
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    y = forward(x, 0.0)
    return y, ReluCache(y, 0.0)


def relu_backward(dy: Array, cache: ReluCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    checks.upstream("relu_backward", dy, cache.y.shape, cache.y.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return backward(dy, cache.y, cache.slope)


def leaky_relu(x: Array, *, slope: float = 0.01) -> tuple[Array, ReluCache]:
    """Keep positive elements, multiply the others by `slope`, which is positive. Any shape.

    >>> leaky_relu(np.array([-2.0, 3.0]), slope=0.1)[0]
    array([-0.2,  3. ])
    """
    checks.floating("leaky_relu", x=x)
    if not slope > 0:
        raise ValueError(f"leaky_relu: slope must be more than 0, got {slope}; for slope 0 use relu")
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    y = forward(x, slope)
    return y, ReluCache(y, slope)


def leaky_relu_backward(dy: Array, cache: ReluCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    checks.upstream("leaky_relu_backward", dy, cache.y.shape, cache.y.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return backward(dy, cache.y, cache.slope)
