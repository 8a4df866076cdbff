r"""Batch normalisation: over the batch, each channel gets mean `beta` and deviation `gamma`; then a ReLU if asked.

    mean[c] = 1/M  sum_i  x[i,c]                          i runs over the M pixels of all images
    var[c]  = 1/M  sum_i (x[i,c] - mean[c])²              the biased variance: M, not M - 1
    n[i,c]  = (x[i,c] - mean[c]) / sqrt(var[c] + eps)
    y[i,c]  = gamma[c] * n[i,c] + beta[c]                 and max(y, 0) with relu=True

    x, y              (..., C), usually N H W C
    gamma, beta       (C,)
    mean, var         (C,)  not given: those of the batch (training); given: constants (evaluation, frozen)

Backward. Let g = dy, or with ReLU g = dy where y > 0 and 0 elsewhere. In all cases

    dbeta[c]  = sum_i g[i,c]
    dgamma[c] = sum_i g[i,c] * n[i,c]

With constant mean and variance y is affine in x:  dx = gamma / sqrt(var + eps) * g.
With those of the batch, every x[i,c] moves all of the channel's outputs. The outputs do not change when a constant
is added to x or (but for eps) when x is scaled about its mean, so g must lose its components along 1 and along n:

    dx[i,c] = gamma[c] / sqrt(var[c] + eps) * (g[i,c]  -  dbeta[c] / M  -  n[i,c] * dgamma[c] / M)

A batch of one pixel per channel (M = 1) has variance 0: y = beta and dx = 0. Nothing is learned from it, which is
what happens to a network that normalises its globally pooled features with a batch of one image.

The variance that normalises is the biased one, and `cache.var` holds that; running averages for evaluation are
customarily fed the unbiased one, var * M / (M - 1).

Cost per float32 element: forward 7 FLOPs and 12 bytes (x twice, y), backward about 10 FLOPs and 20 bytes (dy and x
twice, dx), 8 bytes more with ReLU (y twice). All of it waits for memory; the fused ReLU saves two passes.

Source: Ioffe & Szegedy, "Batch normalization", ICML 2015, algorithm 1 and the equations of section 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import channel_sums, checks


class BatchNormCache(NamedTuple):
    x: Array  # (..., C)
    gamma: Array  # (C,)
    mean: Array  # (C,) what x was normalised with
    var: Array  # (C,) biased
    y: Array | None  # (..., C) the mask of the ReLU; None without one
    eps: float
    of_batch: bool  # mean and var are those of x, not constants


# ---------------------------------------------------------------------------------------------------- reference


def _moments_reference(x: Array) -> tuple[Array, Array]:
    pixels = tuple(range(x.ndim - 1))  # all axes but the channels
    mean, var = x.mean(pixels, dtype=np.float64), x.var(pixels, dtype=np.float64)
    return mean.astype(x.dtype), var.astype(x.dtype)


def _forward_reference(
    x: Array, gamma: Array, beta: Array, mean: Array | None, var: Array | None, eps: float, relu: bool
) -> tuple[Array, Array, Array]:
    """y, and the statistics used."""
    if mean is None or var is None:
        mean, var = _moments_reference(x)
    y = gamma * ((x - mean) * channel_sums.inverse_deviation(var, eps)) + beta
    return np.maximum(y, 0) if relu else y, mean, var


def _backward_reference(dy: Array, cache: BatchNormCache, need: Sequence[bool]) -> list[Array | None]:
    x, gamma = cache.x, cache.gamma
    pixels = tuple(range(x.ndim - 1))
    inverse = channel_sums.inverse_deviation(cache.var, cache.eps)
    g = dy if cache.y is None else np.where(cache.y > 0, dy, 0)
    n = (x - cache.mean) * inverse
    dbeta = g.sum(pixels, dtype=np.float64).astype(x.dtype)
    dgamma = (g * n).sum(pixels, dtype=np.float64).astype(x.dtype)
    count = x.size // gamma.size
    centred = g - dbeta / count - n * (dgamma / count) if cache.of_batch else g
    gradients = (gamma * inverse * centred, dgamma, dbeta)
    return [gradient if wanted else None for gradient, wanted in zip(gradients, need, strict=True)]


# -------------------------------------------------------------------------------------------------------- Numba
# The kernels are those of channel_sums, with one set of pixels.


def _one_set(array: Array) -> Array:
    """(..., C) -> (1, M, C)"""
    return np.ascontiguousarray(array).reshape(1, -1, array.shape[-1])


def _moments_numba(x: Array) -> tuple[Array, Array]:
    mean, var = channel_sums.moments(_one_set(x))
    return mean[0].astype(x.dtype), var[0].astype(x.dtype)


def _forward_numba(
    x: Array, gamma: Array, beta: Array, mean: Array | None, var: Array | None, eps: float, relu: bool
) -> tuple[Array, Array, Array]:
    if mean is None or var is None:
        mean, var = _moments_numba(x)
    scale = gamma * channel_sums.inverse_deviation(var, eps)
    y = channel_sums.normalise(_one_set(x), mean[None], scale[None], beta, relu)
    return y.reshape(x.shape), mean, var


def _backward_numba(dy: Array, cache: BatchNormCache, need: Sequence[bool]) -> list[Array | None]:
    dy_pixels, x, mean = _one_set(dy), _one_set(cache.x), cache.mean[None]
    y = None if cache.y is None else _one_set(cache.y)
    inverse = channel_sums.inverse_deviation(cache.var, cache.eps).astype(np.float64)
    dx = None
    dbeta = dgamma = mean_g = mean_gn = np.zeros(cache.gamma.shape)  # constant statistics take nothing from g
    if cache.of_batch or need[1] or need[2]:
        g, product = channel_sums.gradient_sums(dy_pixels, x, y, mean)  # (1, C) each
        dbeta, dgamma = g[0], product[0] * inverse
        if cache.of_batch:
            mean_g, mean_gn = dbeta / x.shape[1], dgamma / x.shape[1]
    if need[0]:
        a = cache.gamma * inverse
        b, d = -a * inverse * mean_gn, -a * mean_g
        dx = channel_sums.input_gradient(dy_pixels, x, y, mean, a[None], b[None], d[None]).reshape(dy.shape)
    return [dx, dgamma.astype(dy.dtype) if need[1] else None, dbeta.astype(dy.dtype) if need[2] else None]


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)


def _one_set_cuda(array: Array) -> Array:
    """(..., C) -> (1, M, C)"""
    return cuda.contiguous(array).reshape(1, -1, array.shape[-1])


def _forward_cuda(
    x: Array, gamma: Array, beta: Array, mean: Array | None, var: Array | None, eps: float, relu: bool
) -> tuple[Array, Array, Array]:
    """y, and the statistics used."""
    pixels, gamma, beta = _one_set_cuda(x), cuda.contiguous(gamma), cuda.contiguous(beta)
    scale = cuda.empty(gamma.shape, gamma.dtype)
    if mean is None or var is None:
        moments = channel_sums.moments_cuda(pixels)
        mean, var = cuda.empty(gamma.shape, gamma.dtype), cuda.empty(gamma.shape, gamma.dtype)
        numbers = (eps, gamma.size)
        _cuda.launch("batch_norm_of_batch", *moments, gamma, *numbers, mean, var, scale, threads=gamma.size)
    else:
        mean, var = cuda.contiguous(mean), cuda.contiguous(var)
        _cuda.launch("batch_norm_scale", var, gamma, eps, gamma.size, scale, threads=gamma.size)
    return channel_sums.normalise_cuda(pixels, mean, scale, beta, relu).reshape(x.shape), mean, var


def _backward_cuda(dy: Array, cache: BatchNormCache, need: Sequence[bool]) -> list[Array | None]:
    dy_pixels, x, gamma = _one_set_cuda(dy), _one_set_cuda(cache.x), cuda.contiguous(cache.gamma)
    y = None if cache.y is None else _one_set_cuda(cache.y)
    dgamma, dbeta, a, b, d = (cuda.empty(gamma.shape, gamma.dtype) for _ in range(5))
    total = product = None
    if cache.of_batch or need[1] or need[2]:
        total, product = channel_sums.gradient_sums_cuda(dy_pixels, x, y, cache.mean)
    arrays, numbers = (total, product, cache.var, gamma), (cache.eps, x.shape[1], cache.of_batch, gamma.size)
    results = (dgamma, dbeta, a, b, d)
    _cuda.launch("batch_norm_gradients", *arrays, *numbers, *results, threads=gamma.size)
    dx = None
    if need[0]:
        dx = channel_sums.input_gradient_cuda(dy_pixels, x, y, cache.mean, a, b, d).reshape(dy.shape)
    return [dx, dgamma if need[1] else None, dbeta if need[2] else None]


# ------------------------------------------------------------------------------------------------------- public


def batch_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    *,
    mean: Array | None = None,
    var: Array | None = None,
    eps: float = 1e-5,
    relu: bool = False,
) -> tuple[Array, BatchNormCache]:
    """Normalise each channel of x (..., C), then scale by gamma (C,) and shift by beta (C,).

    mean, var   (C,) each. Both absent: those of this batch, over all axes but the last. Both given: constants.
    eps         is added to the variance
    relu        also take max(y, 0), in the same pass

    On a GPU x may be bfloat16; the others, their gradients and the statistics are float32 then.

    `cache.mean` and `cache.var` are the ones used; var is biased (divided by M, not by M - 1).
    """
    parameters = ("gamma", "beta", "mean", "var")
    checks.floating("batch_norm", x=x, gamma=gamma, beta=beta, mean=mean, var=var, parameters=parameters)
    if x.ndim < 2:
        raise ValueError(f"batch_norm: x must have the axes (..., C), 2 or more, got shape {x.shape}")
    if (mean is None) != (var is None):
        raise ValueError(
            "batch_norm: give both mean and var, to normalise with constants, or neither, to use the batch's own"
        )
    for name, array in zip(parameters, (gamma, beta, mean, var), strict=True):
        if array is not None:
            checks.shape("batch_norm", name, array, x.shape[-1:], f"one for each channel of x {x.shape}")
    if not eps >= 0:
        raise ValueError(f"batch_norm: eps must be 0 or more, got {eps}")
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    y, used_mean, used_var = forward(x, gamma, beta, mean, var, eps, relu)
    return y, BatchNormCache(x, gamma, used_mean, used_var, y if relu else None, eps, mean is None)


def batch_norm_backward(
    dy: Array, cache: BatchNormCache, *, need: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, ...]:
    """The gradients (dx, dgamma, dbeta), of the shapes of x, gamma and beta."""
    checks.upstream("batch_norm_backward", dy, cache.x.shape, cache.x.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return tuple(backward(dy, cache, need))


def move_average(running: Array, batch: Array, *, momentum: float, factor: float = 1.0) -> None:
    """Move a running average (C,) towards a batch's:  running <- (1 - momentum) running + momentum factor batch.

    It is changed in place: a recorded CUDA graph goes on moving it.
    """
    checks.shape("move_average", "batch", batch, running.shape, "as the running average")
    if cuda.on_gpu(running):
        _cuda.launch("batch_norm_move", running, batch, momentum, factor, running.size, threads=running.size)
    else:
        running[...] = (1 - momentum) * running + momentum * (batch * factor)
