r"""The two S-shaped functions: the logistic sigmoid, from 0 to 1, and the hyperbolic tangent, from -1 to 1.

    sigmoid     y[i] = 1 / (1 + exp(-x[i]))
    tanh        y[i] = (exp(x[i]) - exp(-x[i])) / (exp(x[i]) + exp(-x[i])) = 2 sigmoid(2 x[i]) - 1

Backward. Both solve a differential equation whose right side needs y alone: with `low` = 0 or -1, the value that
y tends to on the left,

    y' = (y - low) (1 - y),        dx[i] = dy[i] (y[i] - low) (1 - y[i])

Stable form. exp(-x) overflows for large negative x. With e = exp(-|x|), which is at most 1,

    sigmoid(x) = 1 / (1 + e)  if x >= 0  else  e / (1 + e)

Where y has rounded to 1 (x > 17 in float32), dx is 0. For the logarithm of a sigmoid use bce_with_logits, which
never forms y.

Cost: 1 exponential and 8 bytes of traffic per float32 element forward, 12 bytes backward.
"""

import math
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks


class SigmoidCache(NamedTuple):
    y: Array  # the result, any shape
    low: float  # 0 for sigmoid, -1 for tanh


# ---------------------------------------------------------------------------------------------------- reference


def _sigmoid_reference(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e), x.dtype)


def _tanh_reference(x: Array) -> Array:
    return np.asarray(np.tanh(x))


def _backward_reference(dy: Array, y: Array, low: float) -> Array:
    return np.asarray(dy * (y - dy.dtype.type(low)) * (1 - y))


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _sigmoid_kernel(x, y):
    one = x.dtype.type(1)
    for i in prange(x.size):
        e = math.exp(-abs(x[i]))
        y[i] = (one if x[i] >= 0 else e) / (one + e)


@kernel
def _tanh_kernel(x, y):
    for i in prange(x.size):
        y[i] = math.tanh(x[i])


@kernel
def _backward_kernel(dy, y, low, dx):
    one = y.dtype.type(1)
    for i in prange(dy.size):
        dx[i] = dy[i] * (y[i] - low) * (one - y[i])


def _sigmoid_numba(x: Array) -> Array:
    y = np.empty(x.shape, x.dtype)
    _sigmoid_kernel(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
    return y


def _tanh_numba(x: Array) -> Array:
    y = np.empty(x.shape, x.dtype)
    _tanh_kernel(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
    return y


def _backward_numba(dy: Array, y: Array, low: float) -> Array:
    dx = np.empty(dy.shape, dy.dtype)
    flat_dy, flat_y = (np.ascontiguousarray(array).reshape(-1) for array in (dy, y))
    _backward_kernel(flat_dy, flat_y, dy.dtype.type(low), dx.reshape(-1))
    return dx


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16)


def _sigmoid_cuda(x: Array) -> Array:
    return _forward_cuda("sigmoid_forward", x)


def _tanh_cuda(x: Array) -> Array:
    return _forward_cuda("tanh_forward", x)


def _forward_cuda(kernel: str, x: Array) -> Array:
    x = cuda.contiguous(x)
    y = cuda.empty(x.shape, x.dtype)
    _cuda.launch(kernel, x, y, x.size, threads=cuda.quads(x.size))
    return y


def _backward_cuda(dy: Array, y: Array, low: float) -> Array:
    dy, y = cuda.contiguous(dy), cuda.contiguous(y)
    dx = cuda.empty(dy.shape, dy.dtype)
    _cuda.launch("sigmoid_backward", dy, y, low, dx, dy.size, threads=cuda.quads(dy.size))
    return dx


# ------------------------------------------------------------------------------------------------------- public


def sigmoid(x: Array) -> tuple[Array, SigmoidCache]:
    """1 / (1 + exp(-x)), element by element. Any shape.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))[0]
    array([0. , 0.5, 1. ])
    """
    checks.floating("sigmoid", x=x)
    y = backend.choose(x, numpy=_sigmoid_reference, numba=_sigmoid_numba, cuda=_sigmoid_cuda)(x)
    return y, SigmoidCache(y, 0.0)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    return _backward("sigmoid_backward", dy, cache)


def tanh(x: Array) -> tuple[Array, SigmoidCache]:
    """The hyperbolic tangent, element by element. Any shape.

    >>> tanh(np.array([-1000.0, 0.0, 1000.0]))[0]
    array([-1.,  0.,  1.])
    """
    checks.floating("tanh", x=x)
    y = backend.choose(x, numpy=_tanh_reference, numba=_tanh_numba, cuda=_tanh_cuda)(x)
    return y, SigmoidCache(y, -1.0)


def tanh_backward(dy: Array, cache: SigmoidCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    return _backward("tanh_backward", dy, cache)


def _backward(operator: str, dy: Array, cache: SigmoidCache) -> Array:
    checks.upstream(operator, dy, cache.y.shape, cache.y.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return backward(dy, cache.y, cache.low)
