r"""Group normalisation: each image's channels are normalised in G groups, without regard to the rest of the batch.

Group q of an image holds the C/G channels c with  floor(c / (C/G)) = q.  With E = M C/G elements in a group:

    mean[n,q] = 1/E  sum over pixels m and channels c of group q of  x[n,m,c]
    var[n,q]  = 1/E  sum (x[n,m,c] - mean[n,q])²          biased, as in batch_norm
    u[n,m,c]  = (x[n,m,c] - mean[n,q]) / sqrt(var[n,q] + eps)
    y[n,m,c]  = gamma[c] * u[n,m,c] + beta[c]

    x, y          (N, ..., C), usually N H W C; M is the number of pixels, the product of the middle axes
    gamma, beta   (C,)

Two groupings have names of their own. `groups=C`, one channel in each group, is **instance normalisation**.
`groups=1` is **layer normalisation** of whole images; that of single pixels, as transformers have it, is the same
on x.reshape(-1, C), where each pixel counts as an image.

Backward, as in batch_norm, but gamma differs within a group and so joins the upstream gradient, g = gamma[c] dy:

    dx[n,m,c] = (g[n,m,c] - A[n,q] - u[n,m,c] * B[n,q]) / sqrt(var[n,q] + eps)
    A[n,q]    = 1/E  sum over the group of  g            B[n,q] = 1/E  sum over the group of  g * u
    dgamma[c] = sum over n, m of  dy * u                 dbeta[c] = sum over n, m of  dy

Cost: as batch_norm without ReLU. The kernels sum each channel of each image; groups are then put together from
these few numbers.

Sources: Wu & He, "Group normalization", ECCV 2018, equations 1 to 7; Ulyanov, Vedaldi & Lempitsky, "Instance
normalization", 2016; Ba, Kiros & Hinton, "Layer normalization", 2016.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import channel_sums, checks


class GroupNormCache(NamedTuple):
    x: Array  # (N, ..., C)
    gamma: Array  # (C,)
    mean: Array  # (N, G)
    var: Array  # (N, G) biased
    eps: float


# ---------------------------------------------------------------------------------------------------- reference


def _forward_reference(x: Array, gamma: Array, beta: Array, groups: int, eps: float) -> tuple[Array, Array, Array]:
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)  # N M G C/G
    mean = grouped.mean((1, 3), dtype=np.float64).astype(x.dtype)
    var = grouped.var((1, 3), dtype=np.float64).astype(x.dtype)
    u = (grouped - mean[:, None, :, None]) * channel_sums.inverse_deviation(var, eps)[:, None, :, None]
    return gamma * u.reshape(x.shape) + beta, mean, var


def _backward_reference(dy: Array, cache: GroupNormCache, need: Sequence[bool]) -> list[Array | None]:
    x, gamma, mean, var, eps = cache
    shape = (x.shape[0], -1, mean.shape[1], x.shape[-1] // mean.shape[1])  # N M G C/G
    inverse = channel_sums.inverse_deviation(var, eps)[:, None, :, None]
    u = (x.reshape(shape) - mean[:, None, :, None]) * inverse
    g = (gamma * dy).reshape(shape)
    mean_g = g.mean((1, 3), keepdims=True, dtype=np.float64).astype(x.dtype)
    mean_gu = (g * u).mean((1, 3), keepdims=True, dtype=np.float64).astype(x.dtype)
    dx = inverse * (g - mean_g - u * mean_gu)
    pixels = tuple(range(x.ndim - 1))
    dgamma = (dy * u.reshape(x.shape)).sum(pixels, dtype=np.float64).astype(x.dtype)
    dbeta = dy.sum(pixels, dtype=np.float64).astype(x.dtype)
    gradients = (dx.reshape(x.shape), dgamma, dbeta)
    return [gradient if wanted else None for gradient, wanted in zip(gradients, need, strict=True)]


# -------------------------------------------------------------------------------------------------------- Numba
# The kernels are those of channel_sums, with one set of pixels for each image.


def _images(array: Array) -> Array:
    """(N, ..., C) -> (N, M, C)"""
    return np.ascontiguousarray(array).reshape(array.shape[0], -1, array.shape[-1])


def _group_means(of_channels: Array, groups: int) -> Array:
    """(N, C) -> (N, G)"""
    return of_channels.reshape(len(of_channels), groups, -1).mean(axis=2)


def _to_channels(of_groups: Array, channels: int) -> Array:
    """(N, G) -> (N, C)"""
    return np.repeat(of_groups, channels // of_groups.shape[1], axis=1)


def _forward_numba(x: Array, gamma: Array, beta: Array, groups: int, eps: float) -> tuple[Array, Array, Array]:
    images, channels = _images(x), x.shape[-1]
    channel_mean, channel_var = channel_sums.moments(images)
    mean = _group_means(channel_mean, groups)
    between = (channel_mean - _to_channels(mean, channels)) ** 2
    var = _group_means(channel_var + between, groups)  # within the channels, and between them
    mean, var = mean.astype(x.dtype), var.astype(x.dtype)
    scale = gamma * _to_channels(channel_sums.inverse_deviation(var, eps), channels)
    y = channel_sums.normalise(images, _to_channels(mean, channels), scale, beta, relu=False)
    return y.reshape(x.shape), mean, var


def _backward_numba(dy: Array, cache: GroupNormCache, need: Sequence[bool]) -> list[Array | None]:
    x, dy_images = _images(cache.x), _images(dy)
    channels, groups = x.shape[-1], cache.mean.shape[1]
    mean = _to_channels(cache.mean, channels)
    inverse = _to_channels(channel_sums.inverse_deviation(cache.var, cache.eps).astype(np.float64), channels)
    total, product = channel_sums.gradient_sums(dy_images, x, None, mean)  # sums of dy, of dy * (x - mean)
    dx = None
    if need[0]:
        pixels = x.shape[1]
        mean_g = _to_channels(_group_means(cache.gamma * total / pixels, groups), channels)
        mean_gu = _to_channels(_group_means(cache.gamma * inverse * product / pixels, groups), channels)
        a, b, d = inverse * cache.gamma, -inverse * inverse * mean_gu, -inverse * mean_g
        dx = channel_sums.input_gradient(dy_images, x, None, mean, a, b, d).reshape(dy.shape)
    dgamma = (inverse * product).sum(axis=0).astype(x.dtype) if need[1] else None
    dbeta = total.sum(axis=0).astype(x.dtype) if need[2] else None
    return [dx, dgamma, dbeta]


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)


def _images_cuda(array: Array) -> Array:
    """(N, ..., C) -> (N, M, C)"""
    return cuda.contiguous(array).reshape(array.shape[0], -1, array.shape[-1])


def _forward_cuda(x: Array, gamma: Array, beta: Array, groups: int, eps: float) -> tuple[Array, Array, Array]:
    images, gamma, beta = _images_cuda(x), cuda.contiguous(gamma), cuda.contiguous(beta)
    N, C = x.shape[0], x.shape[-1]
    mean, var = (cuda.empty((N, groups), gamma.dtype) for _ in range(2))
    centre, scale = (cuda.empty((N, C), gamma.dtype) for _ in range(2))
    numbers = (eps, mean.size, C // groups, C)
    moments, results = channel_sums.moments_cuda(images), (mean, var, centre, scale)
    _cuda.launch("group_norm_statistics", *moments, gamma, *numbers, *results, threads=32 * mean.size)
    y = channel_sums.normalise_cuda(images, centre, scale, beta, relu=False)
    return y.reshape(x.shape), mean, var


def _backward_cuda(dy: Array, cache: GroupNormCache, need: Sequence[bool]) -> list[Array | None]:
    x, dy_images, gamma = _images_cuda(cache.x), _images_cuda(dy), cuda.contiguous(cache.gamma)
    (N, M, C), groups, dtype = x.shape, cache.mean.shape[1], gamma.dtype
    size = C // groups
    centre = _to_channels_cuda(cache.mean, C)
    total, product = channel_sums.gradient_sums_cuda(dy_images, x, None, centre)
    dx = None
    if need[0]:
        a, b, d = (cuda.empty((N, C), dtype) for _ in range(3))
        arrays, numbers = (total, product, cache.var, gamma), (cache.eps, M, N * groups, size, C)
        _cuda.launch("group_norm_coefficients", *arrays, *numbers, a, b, d, threads=32 * N * groups)
        dx = channel_sums.input_gradient_cuda(dy_images, x, None, centre, a, b, d).reshape(dy.shape)
    dgamma, dbeta = (cuda.empty((C,), dtype) for _ in range(2))
    arrays, numbers = (total, product, cache.var), (cache.eps, N, size, C)
    _cuda.launch("group_norm_parameters", *arrays, *numbers, dgamma, dbeta, threads=C)
    return [dx, dgamma if need[1] else None, dbeta if need[2] else None]


def _to_channels_cuda(of_groups: Array, channels: int) -> Array:
    """(N, G) -> (N, C)"""
    of_channels = cuda.empty((of_groups.shape[0], channels), of_groups.dtype)
    size = channels // of_groups.shape[1]
    _cuda.launch("to_channels", of_groups, of_channels.size, size, of_channels, threads=of_channels.size)
    return of_channels


# ------------------------------------------------------------------------------------------------------- public


def group_norm(
    x: Array, gamma: Array, beta: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Array, GroupNormCache]:
    """Normalise each image of x (N, ..., C) in groups of channels; scale by gamma (C,), shift by beta (C,).

    groups   how many; it divides C. C groups: instance norm. 1 group: layer norm over the whole image.
    eps      is added to the variance
    """
    checks.floating("group_norm", x=x, gamma=gamma, beta=beta, parameters=("gamma", "beta"))
    if x.ndim < 2:
        raise ValueError(f"group_norm: x must have the axes (N, ..., C), 2 or more, got shape {x.shape}")
    for name, array in (("gamma", gamma), ("beta", beta)):
        checks.shape("group_norm", name, array, x.shape[-1:], f"one for each channel of x {x.shape}")
    if not isinstance(groups, int | np.integer) or groups < 1 or x.shape[-1] % groups:
        raise ValueError(
            f"group_norm: groups must be an integer that divides the {x.shape[-1]} channels of x {x.shape}, "
            f"got {groups!r}"
        )
    if not eps >= 0:
        raise ValueError(f"group_norm: eps must be 0 or more, got {eps}")
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    y, mean, var = forward(x, gamma, beta, groups, eps)
    return y, GroupNormCache(x, gamma, mean, var, eps)


def group_norm_backward(
    dy: Array, cache: GroupNormCache, *, need: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, ...]:
    """The gradients (dx, dgamma, dbeta), of the shapes of x, gamma and beta."""
    checks.upstream("group_norm_backward", dy, cache.x.shape, cache.x.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return tuple(backward(dy, cache, need))
