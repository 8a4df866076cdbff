r"""Softmax over the channels, the last axis: scores become probabilities; and its logarithm.

    softmax      y[i,c] = exp(x[i,c]) / Z[i]              Z[i] = sum_j exp(x[i,j])
    log_softmax  y[i,c] = x[i,c] - log Z[i]

    x, y   (..., C); i runs over all pixels

A constant added to all scores of a pixel changes nothing. The code subtracts the largest score first, so that no
exponential exceeds 1 and at least one is 1: nothing overflows and Z is never 0. The logarithm of a softmax is best
not taken of its result: a probability below 1e-38 is 0 in float32, while its logarithm, -90, is no special number.

Backward. dy[i,c]/dx[i,j] is  y[i,c] ([c = j] - y[i,j])  for the softmax, and  [c = j] - exp(y[i,j])  for its
logarithm. Contracted with the upstream gradient:

    softmax      dx[i,j] = y[i,j] * (dy[i,j] - sum_c dy[i,c] * y[i,c])
    log_softmax  dx[i,j] = dy[i,j] - exp(y[i,j]) * sum_c dy[i,c]

Cost: an exponential for each element, which takes longer than its 8 bytes of traffic; backward 4 FLOPs and 12
bytes, for the logarithm an exponential once more. To train a classifier use cross_entropy, which fuses all this.

Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990, equation 8.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks


class SoftmaxCache(NamedTuple):
    y: Array  # the result, (..., C)


# ---------------------------------------------------------------------------------------------------- reference


def _softmax_reference(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _softmax_backward_reference(dy: Array, y: Array) -> Array:
    return y * (dy - (dy * y).sum(-1, keepdims=True))


def _log_softmax_reference(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _log_softmax_backward_reference(dy: Array, y: Array) -> Array:
    return dy - np.exp(y) * dy.sum(-1, keepdims=True)


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _softmax_kernel(x, y):
    pixels, channels = x.shape
    for i in prange(pixels):
        top = _largest(x[i])
        total = x.dtype.type(0)
        for c in range(channels):
            y[i, c] = np.exp(x[i, c] - top)
            total += y[i, c]
        for c in range(channels):
            y[i, c] /= total


@kernel
def _log_softmax_kernel(x, y):
    pixels, channels = x.shape
    for i in prange(pixels):
        # The difference is stored before the logarithm is subtracted. In one expression the compiler would be free
        # to add the largest score to the logarithm first, and a large number would swallow digits of a small one.
        top = _largest(x[i])
        for c in range(channels):
            y[i, c] = x[i, c] - top
        total = x.dtype.type(0)
        for c in range(channels):
            total += np.exp(y[i, c])
        log_total = np.log(total)
        for c in range(channels):
            y[i, c] -= log_total


@kernel
def _largest(x):
    top = x[0]
    for c in range(x.size):
        if x[c] > top:
            top = x[c]
    return top


@kernel
def _softmax_backward_kernel(dy, y, dx):
    pixels, channels = y.shape
    for i in prange(pixels):
        product = dy.dtype.type(0)
        for c in range(channels):
            product += dy[i, c] * y[i, c]
        for c in range(channels):
            dx[i, c] = y[i, c] * (dy[i, c] - product)


@kernel
def _log_softmax_backward_kernel(dy, y, dx):
    pixels, channels = y.shape
    for i in prange(pixels):
        total = dy.dtype.type(0)
        for c in range(channels):
            total += dy[i, c]
        for c in range(channels):
            dx[i, c] = dy[i, c] - np.exp(y[i, c]) * total


def _row_by_row(row_kernel, *arrays: Array) -> Array:
    """Run a kernel on arrays of one shape (..., C), seen as (pixels, C). It fills its last argument."""
    shape = arrays[0].shape
    result = np.empty(shape, arrays[0].dtype)
    rows = (np.ascontiguousarray(array).reshape(-1, shape[-1]) for array in arrays)
    row_kernel(*rows, result.reshape(-1, shape[-1]))
    return result


def _softmax_numba(x: Array) -> Array:
    return _row_by_row(_softmax_kernel, x)


def _softmax_backward_numba(dy: Array, y: Array) -> Array:
    return _row_by_row(_softmax_backward_kernel, dy, y)


def _log_softmax_numba(x: Array) -> Array:
    return _row_by_row(_log_softmax_kernel, x)


def _log_softmax_backward_numba(dy: Array, y: Array) -> Array:
    return _row_by_row(_log_softmax_backward_kernel, dy, y)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16)


def _launch(kernel: str, *arrays: Array) -> Array:
    """Run a kernel on arrays of one shape (..., C). It fills one more."""
    arrays = tuple(cuda.contiguous(array) for array in arrays)
    result = cuda.empty(arrays[0].shape, arrays[0].dtype)
    channels = result.shape[-1]
    pixels, width = result.size // channels, cuda.lanes(channels, each=8)
    _cuda.launch(kernel, *arrays, result, pixels, channels, width, threads=pixels * width)
    return result


def _softmax_cuda(x: Array) -> Array:
    return _launch("softmax_forward", x)


def _softmax_backward_cuda(dy: Array, y: Array) -> Array:
    return _launch("softmax_backward", dy, y)


def _log_softmax_cuda(x: Array) -> Array:
    return _launch("log_softmax_forward", x)


def _log_softmax_backward_cuda(dy: Array, y: Array) -> Array:
    return _launch("log_softmax_backward", dy, y)


# ------------------------------------------------------------------------------------------------------- public


def softmax(x: Array) -> tuple[Array, SoftmaxCache]:
    """Probabilities from scores x (..., C): positive, and of sum 1 over the last axis.

    >>> softmax(np.log(np.array([1.0, 3.0])))[0]
    array([0.25, 0.75])
    """
    _check("softmax", x)
    y = backend.choose(x, numpy=_softmax_reference, numba=_softmax_numba, cuda=_softmax_cuda)(x)
    return y, SoftmaxCache(y)


def softmax_backward(dy: Array, cache: SoftmaxCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    checks.upstream("softmax_backward", dy, cache.y.shape, cache.y.dtype)
    backward = backend.choose(
        dy, numpy=_softmax_backward_reference, numba=_softmax_backward_numba, cuda=_softmax_backward_cuda
    )
    return backward(dy, cache.y)


def log_softmax(x: Array) -> tuple[Array, SoftmaxCache]:
    """Logarithms of the probabilities of scores x (..., C), over the last axis."""
    _check("log_softmax", x)
    y = backend.choose(x, numpy=_log_softmax_reference, numba=_log_softmax_numba, cuda=_log_softmax_cuda)(x)
    return y, SoftmaxCache(y)


def log_softmax_backward(dy: Array, cache: SoftmaxCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    checks.upstream("log_softmax_backward", dy, cache.y.shape, cache.y.dtype)
    backward = backend.choose(
        dy,
        numpy=_log_softmax_backward_reference,
        numba=_log_softmax_backward_numba,
        cuda=_log_softmax_backward_cuda,
    )
    return backward(dy, cache.y)


def _check(operator: str, x: Array) -> None:
    checks.floating(operator, x=x)
    if x.ndim < 1:
        raise ValueError(f"{operator}: x must have the axes (..., C), got a single number")
