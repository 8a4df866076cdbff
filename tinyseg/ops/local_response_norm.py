r"""Local response normalisation: each channel is damped by the energy of its neighbour channels.

    s[c] = k + alpha/size * sum of x[j]² over the window of c       window of c:  c - floor(size/2) <= j
    y[c] = x[c] * s[c]^(-beta)                                                    j <= c + floor((size - 1)/2)

    x, y   (..., C); the formulas hold in each pixel. The window ends at the first and last channel; it is still
           divided by `size` there.

Conventions differ. Here, as in Caffe and PyTorch, alpha is divided by the size of the window. The AlexNet paper
does not divide, so its alpha = 1e-4 is alpha = 5e-4 here:

    AlexNet, the paper                 size=5, alpha=5e-4, beta=0.75, k=2
    AlexNet and GoogLeNet in Caffe     size=5, alpha=1e-4, beta=0.75, k=1        the defaults

Backward. x[c] acts on y[c] directly, and through s[j] on all y[j] whose window holds c, which are those with
c - floor((size - 1)/2) <= j <= c + floor(size/2), the window mirrored. As ds[j]/dx[c] = 2 alpha/size x[c],

    dx[c] = dy[c] s[c]^(-beta)  -  2 alpha beta/size * x[c] * sum over those j of  dy[j] x[j] s[j]^(-beta - 1)

Cost per element: a power and 2 size FLOPs forward, the same and 2 size FLOPs more backward. The power dominates.

Source: Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS
2012, section 3.3.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks


class LocalResponseNormCache(NamedTuple):
    x: Array  # (..., C)
    s: Array  # (..., C) what is raised to -beta
    size: int
    alpha: float
    beta: float


# ---------------------------------------------------------------------------------------------------- reference


def _window_sums(values: Array, before: int, after: int) -> Array:
    """The sum over channels c - before .. c + after for each channel c; channels that do not exist count 0."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(before, after)])
    channels = values.shape[-1]
    sums = np.zeros_like(values)
    for tap in range(before + after + 1):
        sums += padded[..., tap : tap + channels]
    return sums


def _forward_reference(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    s = k + alpha / size * _window_sums(x**2, size // 2, (size - 1) // 2)
    return x * s**-beta, s


def _backward_reference(dy: Array, cache: LocalResponseNormCache) -> Array:
    x, s, size, alpha, beta = cache
    power = s**-beta
    through_s = _window_sums(dy * x * power / s, (size - 1) // 2, size // 2)
    return dy * power - 2 * alpha * beta / size * x * through_s


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _forward_kernel(x, before, after, factor, beta, k, y, s):
    pixels, channels = x.shape
    for i in prange(pixels):
        for c in range(channels):
            energy = x.dtype.type(0)
            for j in range(max(0, c - before), min(channels, c + after + 1)):
                energy += x[i, j] * x[i, j]
            s[i, c] = k + factor * energy
            y[i, c] = x[i, c] * s[i, c] ** -beta


@kernel
def _backward_kernel(dy, x, s, before, after, factor, beta, dx):
    pixels, channels = x.shape
    for i in prange(pixels):
        through_s = np.empty(channels, x.dtype)  # by each s[j], of one pixel
        for c in range(channels):
            dx[i, c] = dy[i, c] * s[i, c] ** -beta
            through_s[c] = x[i, c] * dx[i, c] / s[i, c]
        for c in range(channels):
            total = x.dtype.type(0)
            for j in range(max(0, c - before), min(channels, c + after + 1)):
                total += through_s[j]
            dx[i, c] -= factor * x[i, c] * total


def _forward_numba(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    x = _pixels(x)
    y, s = np.empty_like(x), np.empty_like(x)
    number = x.dtype.type
    _forward_kernel(x, size // 2, (size - 1) // 2, number(alpha / size), number(beta), number(k), y, s)
    return y, s


def _backward_numba(dy: Array, cache: LocalResponseNormCache) -> Array:
    x, s, size, alpha, beta = cache
    dx = np.empty(_pixels(x).shape, x.dtype)
    number = x.dtype.type
    arrays = (_pixels(dy), _pixels(x), _pixels(s))
    _backward_kernel(*arrays, (size - 1) // 2, size // 2, number(2 * alpha * beta / size), number(beta), dx)
    return dx


def _pixels(array: Array) -> Array:
    """(..., C) -> (pixels, C)"""
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1])


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)


def _forward_cuda(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    x = cuda.contiguous(x)
    y, s = cuda.empty(x.shape, x.dtype), cuda.empty(x.shape, x.dtype)
    numbers = (x.size, x.shape[-1], size // 2, (size - 1) // 2, alpha / size, beta, k)
    _cuda.launch("response_forward", x, *numbers, y, s, threads=x.size)
    return y, s


def _backward_cuda(dy: Array, cache: LocalResponseNormCache) -> Array:
    dy, x, s = (cuda.contiguous(array) for array in (dy, cache.x, cache.s))
    around, through, dx = (cuda.empty(x.shape, x.dtype) for _ in range(3))
    size, beta = cache.size, cache.beta
    _cuda.launch("response_through", dy, x, s, x.size, beta, around, through, threads=x.size)
    numbers = (x.size, x.shape[-1], (size - 1) // 2, size // 2, 2 * cache.alpha * beta / size)
    _cuda.launch("response_backward", around, through, x, *numbers, dx, threads=x.size)
    return dx


# ------------------------------------------------------------------------------------------------------- public


def local_response_norm(
    x: Array, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> tuple[Array, LocalResponseNormCache]:
    """x (..., C) divided by (k + alpha/size * energy of `size` neighbour channels)^beta.

    The defaults are those of AlexNet and GoogLeNet as Caffe has them; the AlexNet paper's numbers mean alpha=5e-4
    and k=2 here. The window of an even size reaches one channel further down than up.
    """
    checks.floating("local_response_norm", x=x)
    if x.ndim < 1:
        raise ValueError("local_response_norm: x must have the axes (..., C), got a single number")
    if not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"local_response_norm: size must be an integer of 1 or more, got {size!r}")
    if not (alpha >= 0 and k > 0):
        raise ValueError(
            f"local_response_norm: alpha must be 0 or more and k more than 0, got alpha={alpha}, k={k}; "
            "else a power of 0 or of a negative number is taken"
        )
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    y, s = forward(x, int(size), alpha, beta, k)
    return y.reshape(x.shape), LocalResponseNormCache(x, s.reshape(x.shape), int(size), alpha, beta)


def local_response_norm_backward(dy: Array, cache: LocalResponseNormCache) -> Array:
    """The gradient with respect to `x`, of the shape of `dy`."""
    checks.upstream("local_response_norm_backward", dy, cache.x.shape, cache.x.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return backward(dy, cache).reshape(dy.shape)
