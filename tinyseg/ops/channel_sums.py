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

from tinyseg import cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import sums

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
# Arrays of pixels are (L * M, C), coefficients and means (L, C). Two things let the loops over c vectorise, which
# makes them ten times as fast. There are two indices, not a calculated one into a flat array: the compiler cannot
# know that i * C + c is not negative, and would test it each time, as negative indices count from the end. And the
# gradient is read before the mask is tested: a load behind a condition cannot be done for many numbers at once.


@kernel
def _moments_kernel(x, origin, owner, first, last, sums):
    channels = x.shape[1]
    for job in prange(first.size):
        o = origin[owner[job]]
        for i in range(first[job], last[job]):
            for c in range(channels):
                d = np.float64(x[i, c]) - np.float64(x[o, c])
                sums[job, 0, c] += d
                sums[job, 1, c] += d * d


@kernel
def _normalise_kernel(x, mean, scale, beta, relu, owner, first, last, y):
    channels = x.shape[1]
    for job in prange(first.size):
        l = owner[job]
        zero = y.dtype.type(0)
        for i in range(first[job], last[job]):
            for c in range(channels):
                z = (x[i, c] - mean[l, c]) * scale[l, c] + beta[c]
                y[i, c] = zero if relu and z <= zero else z  # NaN is not <= 0: it stays


@kernel
def _gradient_sums_kernel(dy, x, y, mean, relu, owner, first, last, sums):
    channels = x.shape[1]
    for job in prange(first.size):
        l = owner[job]
        for i in range(first[job], last[job]):
            for c in range(channels):
                g = np.float64(dy[i, c])
                if relu and not y[i, c] > 0:
                    g = 0.0
                sums[job, 0, c] += g
                sums[job, 1, c] += g * (np.float64(x[i, c]) - np.float64(mean[l, c]))


@kernel
def _input_gradient_kernel(dy, x, y, mean, a, b, d, relu, owner, first, last, dx):
    channels = x.shape[1]
    for job in prange(first.size):
        l = owner[job]
        zero = dx.dtype.type(0)
        for i in range(first[job], last[job]):
            for c in range(channels):
                g = dy[i, c]
                if relu and not y[i, c] > zero:
                    g = zero
                dx[i, c] = a[l, c] * g + b[l, c] * (x[i, c] - mean[l, c]) + d[l, c]


# ------------------------------------------------ launchers, on C-contiguous arrays (L, M, C); coefficients (L, C)


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance over the pixels: float64 arrays (L, C)."""
    sets, pixels, channels = x.shape
    chunks = _chunks(x)
    sums = np.zeros((chunks.first.size, 2, channels))
    _moments_kernel(_rows(x), np.arange(sets) * pixels, *chunks, sums)
    d, dd = np.moveaxis(_of_each_set(sums, sets), 1, 0) / pixels
    return x[:, 0] + d, np.maximum(dd - d * d, 0)


def normalise(x: Array, mean: Array, scale: Array, beta: Array, relu: bool) -> Array:
    """(x - mean) * scale + beta, in the type of x. `beta` is (C,)."""
    y = np.empty_like(x)
    coefficients = [_as_type_of(x, array) for array in (mean, scale, beta)]
    _normalise_kernel(_rows(x), *coefficients, relu, *_chunks(x), _rows(y))
    return y


def gradient_sums(dy: Array, x: Array, y: Array | None, mean: Array) -> tuple[Array, Array]:
    """Sums over the pixels of g and of g * (x - mean): float64 arrays (L, C). `y` masks g; None is for no ReLU."""
    chunks = _chunks(x)
    sums = np.zeros((chunks.first.size, 2, x.shape[-1]))
    arrays = [_rows(array) for array in (dy, x, x if y is None else y)]
    _gradient_sums_kernel(*arrays, _as_type_of(x, mean), y is not None, *chunks, sums)
    total, product = np.moveaxis(_of_each_set(sums, x.shape[0]), 1, 0)
    return total, product


def input_gradient(dy: Array, x: Array, y: Array | None, mean: Array, a: Array, b: Array, d: Array) -> Array:
    """a * g + b * (x - mean) + d, in the type of x."""
    dx = np.empty_like(x)
    arrays = [_rows(array) for array in (dy, x, x if y is None else y)]
    coefficients = [_as_type_of(x, array) for array in (mean, a, b, d)]
    _input_gradient_kernel(*arrays, *coefficients, y is not None, *_chunks(x), _rows(dx))
    return dx


def inverse_deviation(var: Array, eps: float) -> Array:
    """1 / sqrt(var + eps), in the type of var."""
    return (1 / np.sqrt(var.astype(np.float64) + eps)).astype(var.dtype)


def _of_each_set(sums: Array, sets: int) -> Array:
    """(jobs, 2, C) -> (L, 2, C)"""
    return sums.reshape(sets, -1, *sums.shape[1:]).sum(axis=1)


def _rows(array: Array) -> Array:
    """(L, M, C) -> (L * M, C)"""
    return array.reshape(-1, array.shape[-1])


def _as_type_of(x: Array, array: Array) -> Array:
    return np.require(array, x.dtype, ["C", "W"])  # writable, too: Numba compiles read-only arrays anew


# --------------------------------------------------------- CUDA launchers, which do the same for arrays on the GPU

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16, WIDTH=(1, 4))


def moments_cuda(x: Array) -> tuple[Array, Array]:
    sets, pixels, channels = x.shape
    partial, options = _sums_of_chunks("moments_chunks", x, x)
    mean, var = (cuda.empty((sets, channels), np.dtype(np.float64)) for _ in range(2))
    numbers = (mean.size, pixels, channels, partial.shape[1])
    _cuda.launch("moments", partial, x, *numbers, mean, var, threads=32 * mean.size, **options)
    return mean, var


def normalise_cuda(x: Array, mean: Array, scale: Array, beta: Array, relu: bool) -> Array:
    y = cuda.empty(x.shape, x.dtype)
    numbers, options = _pixel_by_pixel(x)
    _cuda.launch("normalise", x, mean, scale, beta, relu, *numbers, y, **options)
    return y


def gradient_sums_cuda(dy: Array, x: Array, y: Array | None, mean: Array) -> tuple[Array, Array]:
    sets, _, channels = x.shape
    partial, options = _sums_of_chunks("gradient_chunks", x, dy, x, y, mean)
    total, product = (cuda.empty((sets, channels), np.dtype(np.float64)) for _ in range(2))
    numbers = (total.size, channels, partial.shape[1])
    _cuda.launch("gradient_sums", partial, *numbers, total, product, threads=32 * total.size, **options)
    return total, product


def input_gradient_cuda(dy: Array, x: Array, y: Array | None, mean: Array, a: Array, b: Array, d: Array) -> Array:
    dx = cuda.empty(x.shape, x.dtype)
    numbers, options = _pixel_by_pixel(x)
    _cuda.launch("input_gradient", dy, x, y, mean, a, b, d, *numbers, dx, **options)
    return dx


def _sums_of_chunks(kernel: str, x: Array, *arrays: Array | None) -> tuple[Array, dict]:
    """Two sums for each chunk of pixels and each channel, (L, chunks, 2, C), and the kernels' configuration."""
    sets, pixels, channels = x.shape
    options = _width(channels)
    width, tiles, chunks = sums.split(sets, pixels, channels // options["WIDTH"])
    partial = cuda.empty((sets, chunks, 2, channels), np.dtype(np.float64))
    blocks = (chunks, tiles, sets)
    _cuda.launch(kernel, *arrays, pixels, channels, width, partial, blocks=blocks, **options)
    return partial, options


def _pixel_by_pixel(x: Array) -> tuple[tuple[int, int, int], dict]:
    """The sizes that element-wise kernels take, and the options of their launch."""
    sets, pixels, channels = x.shape
    options = _width(channels)
    return (sets * pixels, pixels, channels), options | {"threads": x.size // options["WIDTH"]}


def _width(channels: int) -> dict[str, int]:
    """How many channels a thread takes at once."""
    return {"WIDTH": cuda.pack_width(channels)}
