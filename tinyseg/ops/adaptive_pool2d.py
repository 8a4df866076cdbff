r"""Adaptive pooling: divide an image of any size into P x Q bins, and keep each bin's mean or maximum.

    adaptive_avg_pool2d   y[n, p, q, c] = mean over h in rows(p), w in columns(q) of  x[n, h, w, c]
    adaptive_max_pool2d   y[n, p, q, c] = max  over h in rows(p), w in columns(q) of  x[n, h, w, c]
    global_...            the same with one bin: P = Q = 1

    rows(p)    = floor(p * H / P) .. ceil((p + 1) * H / P) - 1,   columns(q) likewise with W and Q

    x     N H W C
    y     N P Q C       any P, Q, also more than H, W

Every cell lies in at least one bin. Where P does not divide H, neighbouring bins share a row. Of equal maxima the
first in row-major order is taken, and the first NaN before any number.

Backward. The bins that hold row h are p = floor(h * P / H) .. ceil((h + 1) * P / H) - 1: the rule above with H and
P exchanged (h >= floor(p H / P) means h + 1 > p H / P, and h < ceil((p + 1) H / P) means h < (p + 1) H / P; solve
for p). From these bins, a cell gathers its share of the mean, or the whole of dy where it was the maximum:

    average   dx[n, h, w, c] = sum over the bins (p, q) that hold (h, w) of  dy[n, p, q, c] / (cells in the bin)
    maximum   dx[n, h, w, c] = sum over the bins (p, q) whose maximum lies in (h, w) of  dy[n, p, q, c]

The kernels first reduce each row of the image to Q numbers and then the rows of each bin: all threads have work
even where there is one image and one bin. Sums are kept in float64, so that the mean of a million float32 numbers
is right to its last digit. The order of the sums does not depend on the number of threads.

Cost: one addition or comparison per input element and 4 bytes of float32 traffic, either way; scratch memory for
N H Q C numbers.

Sources: He, Zhang, Ren & Sun, "Spatial pyramid pooling in deep convolutional networks", ECCV 2014, sections 2.2
and 2.3 (their window ceil(H / P) with stride floor(H / P) does not give P bins for every H; this rule does);
Lin, Chen & Yan, "Network in network", ICLR 2014, section 3.2 (global average pooling).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks, geometry
from tinyseg.ops.geometry import Pair


class AdaptiveAvgPool2dCache(NamedTuple):
    shape: tuple[int, ...]  # of x, N H W C
    size: tuple[int, int]  # P, Q
    dtype: np.dtype


class AdaptiveMaxPool2dCache(NamedTuple):
    shape: tuple[int, ...]
    position: Array  # N P Q C, integers: each maximum lies in row position // W and column position % W
    dtype: np.dtype


# ---------------------------------------------------------------------------------------------------- reference


def _avg_reference(x: Array, size: tuple[int, int]) -> Array:
    y = np.empty((x.shape[0], *size, x.shape[3]), x.dtype)
    for p, q, rows, columns in _each_bin(x.shape, size):
        y[:, p, q] = x[:, rows, columns].mean(axis=(1, 2), dtype=np.float64)
    return y


def _avg_backward_reference(dy: Array, shape: tuple[int, ...]) -> Array:
    dx = np.zeros(shape, np.float64)
    for p, q, rows, columns in _each_bin(shape, dy.shape[1:3]):
        cells = (rows.stop - rows.start) * (columns.stop - columns.start)
        dx[:, rows, columns] += dy[:, p : p + 1, q : q + 1] / cells
    return dx.astype(dy.dtype)


def _max_reference(x: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    N, H, W, C = x.shape
    y = np.empty((N, *size, C), x.dtype)
    position = np.empty(y.shape, _position_dtype(x.shape))
    numbers = np.arange(H * W).reshape(H, W)
    for p, q, rows, columns in _each_bin(x.shape, size):
        cells = x[:, rows, columns].reshape(N, -1, C)
        first = cells.argmax(axis=1)  # NumPy, too, takes the first maximum, and NaN for the largest
        y[:, p, q] = np.take_along_axis(cells, first[:, None], axis=1)[:, 0]
        position[:, p, q] = numbers[rows, columns].reshape(-1)[first]
    return y, position


def _max_backward_reference(dy: Array, position: Array, shape: tuple[int, ...]) -> Array:
    _, H, W, _ = shape
    dx = np.zeros(shape, dy.dtype)
    numbers = np.arange(H * W).reshape(H, W, 1)
    for p, q, rows, columns in _each_bin(shape, dy.shape[1:3]):
        is_maximum = numbers[rows, columns] == position[:, p : p + 1, q : q + 1]
        dx[:, rows, columns] += np.where(is_maximum, dy[:, p : p + 1, q : q + 1], 0)
    return dx


# -------------------------------------------------------------------------------------------------------- Numba
# `rows` and `columns` are tables of bins: the first cell of each, and the one after its last.


@kernel
def _row_sums_kernel(x, columns, sums):
    N, H, _, C = x.shape
    for row in prange(N * H):
        n, h = row // H, row % H
        for q in range(len(columns)):
            total = sums[n, h, q]
            for c in range(C):
                total[c] = 0
            for w in range(columns[q, 0], columns[q, 1]):
                cell = x[n, h, w]
                for c in range(C):
                    total[c] += cell[c]


@kernel
def _row_maxima_kernel(x, columns, maxima, position):
    N, H, W, C = x.shape
    for row in prange(N * H):
        n, h = row // H, row % H
        for q in range(len(columns)):
            largest, where = maxima[n, h, q], position[n, h, q]
            first = columns[q, 0]
            for c in range(C):
                largest[c] = x[n, h, first, c]
                where[c] = h * W + first
            for w in range(first + 1, columns[q, 1]):
                cell = x[n, h, w]
                here = position.dtype.type(h * W + w)
                for c in range(C):
                    new, old, old_position = cell[c], largest[c], where[c]
                    wins = new > old or (new != new and old == old)  # the first NaN wins
                    largest[c] = new if wins else old
                    where[c] = here if wins else old_position


@kernel
def _avg_backward_kernel(dy, rows, columns, bins_of_row, bins_of_column, dx):
    N, H, W, C = dx.shape
    for row in prange(N * H):
        n, h = row // H, row % H
        total = np.empty(C, np.float64)
        for w in range(W):
            for c in range(C):
                total[c] = 0
            for p in range(bins_of_row[h, 0], bins_of_row[h, 1]):
                for q in range(bins_of_column[w, 0], bins_of_column[w, 1]):
                    share = 1 / ((rows[p, 1] - rows[p, 0]) * (columns[q, 1] - columns[q, 0]))
                    value = dy[n, p, q]
                    for c in range(C):
                        total[c] += value[c] * share
            gathered = dx[n, h, w]
            for c in range(C):
                gathered[c] = total[c]


@kernel
def _max_backward_kernel(dy, position, bins_of_row, bins_of_column, dx):
    N, H, W, C = dx.shape
    zero = dy.dtype.type(0)
    for row in prange(N * H):
        n, h = row // H, row % H
        for w in range(W):
            total = dx[n, h, w]
            here = position.dtype.type(h * W + w)
            for c in range(C):
                total[c] = 0
            for p in range(bins_of_row[h, 0], bins_of_row[h, 1]):
                for q in range(bins_of_column[w, 0], bins_of_column[w, 1]):
                    value, where = dy[n, p, q], position[n, p, q]
                    for c in range(C):
                        total[c] += value[c] if where[c] == here else zero


def _avg_numba(x: Array, size: tuple[int, int]) -> Array:
    (N, H, W, C), (P, Q) = x.shape, size
    rows, columns = _bins(H, P), _bins(W, Q)
    sums = np.empty((N, H, Q, C), np.float64)
    _row_sums_kernel(np.ascontiguousarray(x), columns, sums)
    y = np.empty((N, P, Q, C), x.dtype)
    widths = (columns[:, 1] - columns[:, 0])[:, None]
    for p, (first, end) in enumerate(rows):
        y[:, p] = sums[:, first:end].sum(axis=1) / ((end - first) * widths)
    return y


def _avg_backward_numba(dy: Array, shape: tuple[int, ...]) -> Array:
    (_, H, W, _), (P, Q) = shape, dy.shape[1:3]
    dx = np.empty(shape, dy.dtype)
    dy = np.ascontiguousarray(dy)
    _avg_backward_kernel(dy, _bins(H, P), _bins(W, Q), _bins(P, H), _bins(Q, W), dx)
    return dx


def _max_numba(x: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    (N, H, W, C), (P, Q) = x.shape, size
    maxima = np.empty((N, H, Q, C), x.dtype)
    positions = np.empty(maxima.shape, _position_dtype(x.shape))
    _row_maxima_kernel(np.ascontiguousarray(x), _bins(W, Q), maxima, positions)
    y = np.empty((N, P, Q, C), x.dtype)
    position = np.empty(y.shape, positions.dtype)
    for p, (first, end) in enumerate(_bins(H, P)):
        row = maxima[:, first:end].argmax(axis=1, keepdims=True)
        y[:, p] = np.take_along_axis(maxima[:, first:end], row, axis=1)[:, 0]
        position[:, p] = np.take_along_axis(positions[:, first:end], row, axis=1)[:, 0]
    return y, position


def _max_backward_numba(dy: Array, position: Array, shape: tuple[int, ...]) -> Array:
    (_, H, W, _), (P, Q) = shape, dy.shape[1:3]
    dx = np.empty(shape, dy.dtype)
    _max_backward_kernel(np.ascontiguousarray(dy), position, _bins(P, H), _bins(Q, W), dx)
    return dx


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["pooling.cuh"], scalars=cuda.WITH_BFLOAT16)


def _avg_cuda(x: Array, size: tuple[int, int]) -> Array:
    (N, H, W, C), (P, Q) = x.shape, size
    sums, y = cuda.empty((N, H, Q, C), np.dtype(np.float64)), cuda.empty((N, P, Q, C), x.dtype)
    _launch("row_sums", sums, (cuda.contiguous(x),), (W, Q), (sums,))
    _launch("bin_means", y, (sums,), (H, W, P, Q), (y,))
    return y


def _avg_backward_cuda(dy: Array, shape: tuple[int, ...]) -> Array:
    dx = cuda.empty(shape, dy.dtype)
    _launch("avg_backward", dx, (cuda.contiguous(dy),), (*shape[1:3], *dy.shape[1:3]), (dx,))
    return dx


def _max_cuda(x: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    (N, H, W, C), (P, Q) = x.shape, size
    if _position_dtype(x.shape) != np.int32:
        raise OverflowError(
            f"max pooling on the GPU takes images of fewer than 2^31 pixels, got {H} x {W}; pool parts of them"
        )
    maxima, y = cuda.empty((N, H, Q, C), x.dtype), cuda.empty((N, P, Q, C), x.dtype)
    positions, position = cuda.empty(maxima.shape, np.dtype(np.int32)), cuda.empty(y.shape, np.dtype(np.int32))
    _launch("row_maxima", maxima, (cuda.contiguous(x),), (H, W, Q), (maxima, positions))
    _launch("bin_maxima", y, (maxima, positions), (H, P, Q), (y, position))
    return y, position


def _max_backward_cuda(dy: Array, position: Array, shape: tuple[int, ...]) -> Array:
    dx = cuda.empty(shape, dy.dtype)
    _launch("max_backward", dx, (cuda.contiguous(dy), position), (*shape[1:3], *dy.shape[1:3]), (dx,))
    return dx


def _launch(kernel: str, shaped: Array, arrays: tuple, numbers: tuple, results: tuple) -> None:
    """Run a kernel with one thread for each channel of each pixel of an array of this shape."""
    N, height, width, C = shaped.shape
    pixels = N * height * width
    side, blocks = cuda.tile(pixels, C)
    _cuda.launch(kernel, *arrays, pixels, C, side, *numbers, *results, blocks=blocks)


# ------------------------------------------------------------------------------------------------------- public


def adaptive_avg_pool2d(x: Array, size: Pair) -> tuple[Array, AdaptiveAvgPool2dCache]:
    """The mean of each of P x Q bins. x: N H W C, size: a number or (P, Q). Returns y, N P Q C.

    >>> x = np.arange(5.0).reshape(1, 1, 5, 1)
    >>> adaptive_avg_pool2d(x, (1, 2))[0].ravel()
    array([1., 3.])
    """
    return _avg("adaptive_avg_pool2d", x, size)


def adaptive_avg_pool2d_backward(dy: Array, cache: AdaptiveAvgPool2dCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return _avg_backward("adaptive_avg_pool2d_backward", dy, cache)


def adaptive_max_pool2d(x: Array, size: Pair) -> tuple[Array, AdaptiveMaxPool2dCache]:
    """The maximum of each of P x Q bins. x: N H W C, size: a number or (P, Q). Returns y, N P Q C.

    >>> x = np.array([4.0, 1.0, 3.0, 1.0, 2.0]).reshape(1, 1, 5, 1)
    >>> adaptive_max_pool2d(x, (1, 2))[0].ravel()
    array([4., 3.])
    """
    return _max("adaptive_max_pool2d", x, size)


def adaptive_max_pool2d_backward(dy: Array, cache: AdaptiveMaxPool2dCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return _max_backward("adaptive_max_pool2d_backward", dy, cache)


def global_avg_pool2d(x: Array) -> tuple[Array, AdaptiveAvgPool2dCache]:
    """The mean over the whole image. x: N H W C. Returns y, N 1 1 C."""
    return _avg("global_avg_pool2d", x, 1)


def global_avg_pool2d_backward(dy: Array, cache: AdaptiveAvgPool2dCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return _avg_backward("global_avg_pool2d_backward", dy, cache)


def global_max_pool2d(x: Array) -> tuple[Array, AdaptiveMaxPool2dCache]:
    """The maximum over the whole image. x: N H W C. Returns y, N 1 1 C."""
    return _max("global_max_pool2d", x, 1)


def global_max_pool2d_backward(dy: Array, cache: AdaptiveMaxPool2dCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return _max_backward("global_max_pool2d_backward", dy, cache)


def _avg(operator: str, x: Array, size: Pair) -> tuple[Array, AdaptiveAvgPool2dCache]:
    size = _checked(operator, x, size)
    forward = backend.choose(x, numpy=_avg_reference, numba=_avg_numba, cuda=_avg_cuda)
    return forward(x, size), AdaptiveAvgPool2dCache(x.shape, size, x.dtype)


def _avg_backward(operator: str, dy: Array, cache: AdaptiveAvgPool2dCache) -> Array:
    N, _, _, C = cache.shape
    checks.upstream(operator, dy, (N, *cache.size, C), cache.dtype)
    backward = backend.choose(
        dy, numpy=_avg_backward_reference, numba=_avg_backward_numba, cuda=_avg_backward_cuda
    )
    return backward(dy, cache.shape)


def _max(operator: str, x: Array, size: Pair) -> tuple[Array, AdaptiveMaxPool2dCache]:
    size = _checked(operator, x, size)
    forward = backend.choose(x, numpy=_max_reference, numba=_max_numba, cuda=_max_cuda)
    y, position = forward(x, size)
    return y, AdaptiveMaxPool2dCache(x.shape, position, x.dtype)


def _max_backward(operator: str, dy: Array, cache: AdaptiveMaxPool2dCache) -> Array:
    checks.upstream(operator, dy, cache.position.shape, cache.dtype)
    backward = backend.choose(
        dy, numpy=_max_backward_reference, numba=_max_backward_numba, cuda=_max_backward_cuda
    )
    return backward(dy, cache.position, cache.shape)


def _checked(operator: str, x: Array, size: Pair) -> tuple[int, int]:
    checks.floating(operator, x=x)
    checks.rank(operator, "x", x, "N H W C")
    return geometry.pair(operator, "size", size, minimum=1)


def _bins(size: int, count: int) -> Array:
    """(count, 2): the first cell of each of `count` bins over `size` cells, and the one after its last."""
    i = np.arange(count)
    return np.stack([i * size // count, -(-(i + 1) * size // count)], axis=1)


def _each_bin(shape: tuple[int, ...], size: tuple[int, ...]) -> Iterator[tuple[int, int, slice, slice]]:
    """p, q, and the slices of rows and columns, for every bin."""
    for p, rows in enumerate(_bins(shape[1], size[0])):
        for q, columns in enumerate(_bins(shape[2], size[1])):
            yield p, q, slice(*rows), slice(*columns)


def _position_dtype(shape: tuple[int, ...]) -> np.dtype:
    return np.dtype(np.int32 if shape[1] * shape[2] < 2**31 else np.int64)
