r"""What batch_norm and group_norm share: sums over the pixels of each channel, and an affine map per channel.

Both see their input as L sets of M pixels with C channels, an array (L, M, C), and normalise each set on its own.
Batch norm has one set, all pixels of all images; group norm has one for each image. Four passes over memory:

    moments          mean[l,c] and var[l,c] over m of x[l,m,c]
    normalise        y  = (x - mean) * scale + beta,  and max(y, 0) if `relu`
    gradient_sums    sum over m of g,  and of g * (x - mean),  where g = dy, or dy * [y > 0] if `relu`
    input_gradient   dx = a * g + b * (x - mean) + d,  with a, b, d for each set and channel

Rounding. All sums run in float64, which costs little: the loops wait for memory. The variance is computed in one
pass, from d = x - (first pixel of the set), as E[d²] - E[d]². The shift keeps this difference harmless, however
far from 0 the values lie: the first pixel is one of the M, so E[d]² is at most M times the variance.

Same bits on any number of threads: the sums are split into chunks by the shape alone, and added up in order.
"""

from typing import NamedTuple

import numpy as np

from tinyseg.backend import Array, kernel, prange

CHUNK_ELEMENTS = 16384
MAX_CHUNKS = 64


class Chunks(NamedTuple):
    """The pixels of all sets, split for the threads. Pixels are numbered 0 .. L * M - 1."""

    owner: Array  # (jobs,) the set that the chunk's pixels belong to
    first: Array  # (jobs,)
    last: Array  # (jobs,) one past the last pixel


def _chunks(x: Array) -> Chunks:
    sets, pixels, channels = x.shape
    count = min(MAX_CHUNKS, pixels, -(-pixels * channels // CHUNK_ELEMENTS))  # for each set
    edges = np.arange(count + 1) * pixels // count
    start = np.arange(sets)[:, None] * pixels
    return Chunks(
        owner=np.repeat(np.arange(sets), count),
        first=(start + edges[:-1]).reshape(-1),
        last=(start + edges[1:]).reshape(-1),
    )


# ------------------------------------------------------------------------------------------------------ kernels
# The gradient is read before the mask is tested: a load behind a condition would keep the loop from vectorising.


@kernel
def _moments_kernel(x, pixels, channels, owner, first, last, sums):
    for job in prange(first.size):
        origin = owner[job] * pixels * channels
        for i in range(first[job], last[job]):
            for c in range(channels):
                d = np.float64(x[i * channels + c]) - np.float64(x[origin + c])
                sums[job, 0, c] += d
                sums[job, 1, c] += d * d


@kernel
def _normalise_kernel(x, mean, scale, beta, relu, channels, owner, first, last, y):
    for job in prange(first.size):
        row = owner[job] * channels  # where the set's mean and scale begin
        zero = y.dtype.type(0)
        for i in range(first[job], last[job]):
            for c in range(channels):
                z = (x[i * channels + c] - mean[row + c]) * scale[row + c] + beta[c]
                y[i * channels + c] = zero if relu and z <= zero else z  # NaN is not <= 0: it stays


@kernel
def _gradient_sums_kernel(dy, x, y, mean, relu, channels, owner, first, last, sums):
    for job in prange(first.size):
        row = owner[job] * channels
        for i in range(first[job], last[job]):
            for c in range(channels):
                k = i * channels + c
                g = np.float64(dy[k])
                if relu and not y[k] > 0:
                    g = 0.0
                sums[job, 0, c] += g
                sums[job, 1, c] += g * (np.float64(x[k]) - np.float64(mean[row + c]))


@kernel
def _input_gradient_kernel(dy, x, y, mean, a, b, d, relu, channels, owner, first, last, dx):
    for job in prange(first.size):
        row = owner[job] * channels
        zero = dx.dtype.type(0)
        for i in range(first[job], last[job]):
            for c in range(channels):
                k = i * channels + c
                g = dy[k]
                if relu and not y[k] > zero:
                    g = zero
                dx[k] = a[row + c] * g + b[row + c] * (x[k] - mean[row + c]) + d[row + c]


# ---------------------------------------------------------------------------- launchers, on C-contiguous arrays


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance over the pixels: float64 arrays (L, C)."""
    sets, pixels, channels = x.shape
    chunks = _chunks(x)
    sums = np.zeros((chunks.first.size, 2, channels))
    _moments_kernel(x.reshape(-1), pixels, channels, *chunks, sums)
    d, dd = np.moveaxis(_of_each_set(sums, sets), 1, 0) / pixels
    return x[:, 0] + d, np.maximum(dd - d * d, 0)


def normalise(x: Array, mean: Array, scale: Array, beta: Array, relu: bool) -> Array:
    """(x - mean) * scale + beta, in the type of x. `mean` and `scale` are (L, C), `beta` is (C,)."""
    y = np.empty_like(x)
    coefficients = [_flat(array, x.dtype) for array in (mean, scale, beta)]
    _normalise_kernel(x.reshape(-1), *coefficients, relu, x.shape[-1], *_chunks(x), y.reshape(-1))
    return y


def gradient_sums(dy: Array, x: Array, y: Array | None, mean: Array) -> tuple[Array, Array]:
    """Sums over the pixels of g and of g * (x - mean): float64 arrays (L, C). `y` masks g; None is for no ReLU."""
    chunks = _chunks(x)
    sums = np.zeros((chunks.first.size, 2, x.shape[-1]))
    arrays = [array.reshape(-1) for array in (dy, x, x if y is None else y)]
    _gradient_sums_kernel(*arrays, _flat(mean, x.dtype), y is not None, x.shape[-1], *chunks, sums)
    total, product = np.moveaxis(_of_each_set(sums, x.shape[0]), 1, 0)
    return total, product


def input_gradient(dy: Array, x: Array, y: Array | None, mean: Array, a: Array, b: Array, d: Array) -> Array:
    """a * g + b * (x - mean) + d, in the type of x. The coefficients are (L, C)."""
    dx = np.empty_like(x)
    arrays = [array.reshape(-1) for array in (dy, x, x if y is None else y)]
    coefficients = [_flat(array, x.dtype) for array in (mean, a, b, d)]
    _input_gradient_kernel(*arrays, *coefficients, y is not None, x.shape[-1], *_chunks(x), dx.reshape(-1))
    return dx


def inverse_deviation(var: Array, eps: float) -> Array:
    """1 / sqrt(var + eps), in the type of var."""
    return (1 / np.sqrt(var.astype(np.float64) + eps)).astype(var.dtype)


def _of_each_set(sums: Array, sets: int) -> Array:
    """(jobs, 2, C) -> (L, 2, C)"""
    return sums.reshape(sets, -1, *sums.shape[1:]).sum(axis=1)


def _flat(array: Array, dtype: np.dtype) -> Array:
    return np.ascontiguousarray(array, dtype=dtype).reshape(-1)
