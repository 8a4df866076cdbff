r"""Max pooling, which keeps the largest cell of each window, and max unpooling, which puts it back.

    max_pool2d     y[n, p, q, c]     = max over r < R, s < S of  x[n, h, w, c]
                   index[n, p, q, c] = the r * S + s at which the maximum lies
    max_unpool2d   y[n, h, w, c]     = sum of x[n, p, q, c] over the windows with  index[n, p, q, c] = r * S + s

where the cell under tap (r, s) of window (p, q) is, with `padding` = (top, bottom, left, right),

    h = p * stride - top + r,    w = q * stride - left + s

    x (pooling), y (unpooling)              N H W C
    y (pooling), x (unpooling), index       N P Q C     P, Q: see tinyseg/ops/geometry.py

Cells in the padding never win. Of equal cells the first in row-major order wins. The first NaN wins over every
number, so that it stays visible. With `ceil_mode` the last window may hang over the border (Caffe's rounding).

Backward. Given the index, pooling is linear: y = A x, where A picks one cell for each window. Its adjoint sends
each window's number to the cell it came from. So the gradient of pooling is unpooling, dx = A^T dy, and the
gradient of unpooling picks, dx = A dy. All of it is gathered: a cell asks the windows that cover it, at most
ceil(R / stride) * ceil(S / stride) of them. Where that is one, because windows lie side by side, a GPU's thread
answers all cells of its window at once.

The index counts inside the window, not over the image: one byte where R * S <= 256 (int32 beyond that), against 8
for the positions that PyTorch keeps. Where windows overlap, several may point to one cell. Here their values are
summed, which makes unpooling the exact adjoint; PyTorch keeps any one of them.

Cost: R * S - 1 comparisons per output. 2 x 2, stride 2, float32: 5.25 bytes of traffic per input element forward,
5.25 backward.

Sources: Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS
2012, section 3.4 (overlapping windows); Zeiler & Fergus, "Visualizing and understanding convolutional networks",
ECCV 2014, section 2.1 (unpooling by the recorded positions); Badrinarayanan, Kendall & Cipolla, "SegNet", TPAMI
2017 (unpooling as a decoder); Jia et al., Caffe, 2014, pooling_layer.cpp (rounding up).
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks, geometry, pooling
from tinyseg.ops.geometry import PaddingLike, Pair, Window


class MaxPool2dCache(NamedTuple):
    index: Array  # N P Q C, uint8 or int32: where in its window each maximum lies, r * S + s
    window: Window
    dtype: np.dtype  # of x and y


class MaxUnpool2dCache(NamedTuple):
    index: Array  # N P Q C
    window: Window
    dtype: np.dtype


# ---------------------------------------------------------------------------------------------------- reference


def _pool_reference(x: Array, window: Window) -> tuple[Array, Array]:
    shape = (x.shape[0], *window.out, x.shape[3])
    y = np.zeros(shape, x.dtype)
    index = np.full(shape, -1)  # no cell seen yet
    extended = pooling.extend(x, window)
    inside = pooling.extend(np.ones((1, *window.size, 1), bool), window)
    for tap, rows, columns in pooling.taps(window):
        cell = extended[:, rows, columns]
        larger = (cell > y) | (np.isnan(cell) & ~np.isnan(y))
        wins = inside[:, rows, columns] & ((index < 0) | larger)
        y = np.where(wins, cell, y)
        index = np.where(wins, tap, index)
    return y, index.astype(_index_dtype(window.kernel))


def _pick_reference(x: Array, index: Array, window: Window) -> Array:
    """A x: the cell that each window's index points to."""
    y = np.zeros(index.shape, x.dtype)
    extended = pooling.extend(x, window)
    for tap, rows, columns in pooling.taps(window):
        y = np.where(index == tap, extended[:, rows, columns], y)
    return y


def _put_reference(y: Array, index: Array, window: Window) -> Array:
    """A^T y: each window's number, added to the cell that its index points to."""
    extended = pooling.extend(np.zeros((y.shape[0], *window.size, y.shape[3]), y.dtype), window)
    for tap, rows, columns in pooling.taps(window):
        extended[:, rows, columns] += np.where(index == tap, y, 0)
    return pooling.cut(extended, window).copy()


# -------------------------------------------------------------------------------------------------------- Numba
# One row of the result for each step of the parallel loop. The innermost loops run over channels, and vectorise
# as they are written; a branch in place of the conditional expressions would stop that.


@kernel
def _pool_kernel(x, kernel, stride, start, y, index):
    N, H, W, C = x.shape
    _, P, Q, _ = y.shape
    R, S = kernel
    for row in prange(N * P):
        n, p = row // P, row % P
        h0 = p * stride[0] - start[0]
        for q in range(Q):
            w0 = q * stride[1] - start[1]
            largest, where = y[n, p, q], index[n, p, q]
            first = True
            for r in range(max(0, -h0), min(R, H - h0)):
                for s in range(max(0, -w0), min(S, W - w0)):
                    cell = x[n, h0 + r, w0 + s]
                    tap = index.dtype.type(r * S + s)
                    if first:
                        first = False
                        for c in range(C):
                            largest[c] = cell[c]
                            where[c] = tap
                    else:
                        for c in range(C):
                            new, old, old_tap = cell[c], largest[c], where[c]
                            wins = new > old or (new != new and old == old)  # the first NaN wins
                            largest[c] = new if wins else old
                            where[c] = tap if wins else old_tap


@kernel
def _pick_kernel(x, index, kernel, stride, start, y):
    N, H, W, C = x.shape
    _, P, Q, _ = y.shape
    R, S = kernel
    for row in prange(N * P):
        n, p = row // P, row % P
        h0 = p * stride[0] - start[0]
        for q in range(Q):
            w0 = q * stride[1] - start[1]
            picked, where = y[n, p, q], index[n, p, q]
            for c in range(C):
                picked[c] = 0
            for r in range(max(0, -h0), min(R, H - h0)):
                for s in range(max(0, -w0), min(S, W - w0)):
                    cell = x[n, h0 + r, w0 + s]
                    tap = index.dtype.type(r * S + s)
                    for c in range(C):
                        new, old = cell[c], picked[c]
                        picked[c] = new if where[c] == tap else old


@kernel
def _put_kernel(y, index, kernel, stride, start, x):
    N, H, W, C = x.shape
    _, P, Q, _ = y.shape
    R, S = kernel
    zero = y.dtype.type(0)
    for row in prange(N * H):
        n, h = row // H, row % H
        # The windows that cover row i of the padded image: p * stride <= i < p * stride + R.
        i = h + start[0]
        first_p, end_p = max(0, (i - R) // stride[0] + 1), min(P, i // stride[0] + 1)
        for w in range(W):
            j = w + start[1]
            first_q, end_q = max(0, (j - S) // stride[1] + 1), min(Q, j // stride[1] + 1)
            total = x[n, h, w]
            for c in range(C):
                total[c] = 0
            for p in range(first_p, end_p):
                for q in range(first_q, end_q):
                    tap = index.dtype.type((i - p * stride[0]) * S + j - q * stride[1])
                    value, where = y[n, p, q], index[n, p, q]
                    for c in range(C):
                        total[c] += value[c] if where[c] == tap else zero


def _pool_numba(x: Array, window: Window) -> tuple[Array, Array]:
    shape = (x.shape[0], *window.out, x.shape[3])
    y = np.empty(shape, x.dtype)
    index = np.empty(shape, _index_dtype(window.kernel))
    _pool_kernel(np.ascontiguousarray(x), *_numbers(window), y, index)
    return y, index


def _pick_numba(x: Array, index: Array, window: Window) -> Array:
    y = np.empty(index.shape, x.dtype)
    _pick_kernel(np.ascontiguousarray(x), np.ascontiguousarray(index), *_numbers(window), y)
    return y


def _put_numba(y: Array, index: Array, window: Window) -> Array:
    x = np.empty((y.shape[0], *window.size, y.shape[3]), y.dtype)
    _put_kernel(np.ascontiguousarray(y), np.ascontiguousarray(index), *_numbers(window), x)
    return x


def _numbers(window: Window) -> tuple:
    return window.kernel, window.stride, (window.padding.top, window.padding.left)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["pooling.cuh"], scalars=cuda.WITH_BFLOAT16, WIDTH=(1, 4))


def _pool_cuda(x: Array, window: Window) -> tuple[Array, Array]:
    shape = (x.shape[0], *window.out, x.shape[3])
    y, index = cuda.empty(shape, x.dtype), cuda.empty(shape, _index_dtype(window.kernel))
    pooling.launch(_cuda, "max_pool_forward", (cuda.contiguous(x),), window, (y, *_narrow_and_wide(index)))
    return y, index


def _pick_cuda(x: Array, index: Array, window: Window) -> Array:
    y = cuda.empty(index.shape, x.dtype)
    arrays = (cuda.contiguous(x), *_narrow_and_wide(cuda.contiguous(index)))
    pooling.launch(_cuda, "max_pool_pick", arrays, window, (y,))
    return y


def _put_cuda(y: Array, index: Array, window: Window) -> Array:
    x = cuda.empty((y.shape[0], *window.size, y.shape[3]), y.dtype)
    arrays = (cuda.contiguous(y), *_narrow_and_wide(cuda.contiguous(index)))
    pooling.launch_adjoint(_cuda, "max_pool_put", arrays, window, x)
    return x


def _narrow_and_wide(index: Array) -> tuple[Array | None, Array | None]:
    """Kernels take an index of bytes or one of integers, as two arguments; the other is absent."""
    return (index, None) if index.dtype == np.uint8 else (None, index)


# ------------------------------------------------------------------------------------------------------- public


def max_pool2d(
    x: Array, kernel: Pair, *, stride: Pair | None = None, padding: PaddingLike = 0, ceil_mode: bool = False
) -> tuple[Array, MaxPool2dCache]:
    """The largest cell of each window; `cache.index` tells where it lies, for `max_unpool2d`.

    x: N H W C. kernel: a number or (R, S). stride: a number or a pair, the kernel's size if left out.
    padding: a number, a pair, (top, bottom, left, right) or "same", smaller than the kernel.
    Returns y, N P Q C.

    >>> x = np.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 2.0, 1.0]]).reshape(1, 2, 4, 1)
    >>> y, cache = max_pool2d(x, 2)
    >>> y.ravel(), cache.index.ravel()
    (array([5., 2.]), array([1, 0], dtype=uint8))
    """
    checks.floating("max_pool2d", x=x)
    checks.rank("max_pool2d", "x", x, "N H W C")
    window = pooling.window("max_pool2d", x.shape[1:3], kernel, stride, padding, ceil_mode)
    pool = backend.choose(x, numpy=_pool_reference, numba=_pool_numba, cuda=_pool_cuda)
    y, index = pool(x, window)
    return y, MaxPool2dCache(index, window, x.dtype)


def max_pool2d_backward(dy: Array, cache: MaxPool2dCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    checks.upstream("max_pool2d_backward", dy, cache.index.shape, cache.dtype)
    put = backend.choose(dy, numpy=_put_reference, numba=_put_numba, cuda=_put_cuda)
    return put(dy, cache.index, cache.window)


def max_unpool2d(
    x: Array,
    index: Array,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[Array, MaxUnpool2dCache]:
    """Put each number where the maximum of its window was, and zeros elsewhere. The options are those of pooling.

    x, index: N P Q C; index is the `cache.index` of `max_pool2d`, integers.
    size: H, W of the pooled image, which several sizes may share; if left out, the one whose last window ends
    with the image and its padding (for "same": P * stride, Q * stride).
    Returns y, N H W C. Numbers whose index points out of the image are dropped.

    >>> x = np.array([7.0, 9.0]).reshape(1, 1, 2, 1)
    >>> index = np.array([1, 0], np.uint8).reshape(x.shape)
    >>> max_unpool2d(x, index, 2)[0][0, :, :, 0]
    array([[0., 7., 9., 0.],
           [0., 0., 0., 0.]])
    """
    checks.floating("max_unpool2d", x=x)
    checks.rank("max_unpool2d", "x", x, "N P Q C")
    if size is None:
        size = _pooled_size(x.shape[1:3], kernel, stride, padding)
    size = geometry.pair("max_unpool2d", "size", size, minimum=1)
    window = pooling.window("max_unpool2d", size, kernel, stride, padding, ceil_mode)
    shape = (x.shape[0], *window.out, x.shape[3])
    checks.shape("max_unpool2d", "x", x, shape, f"these options pool an image of {size} to {window.out}")
    index = _checked_index(index, x, window)
    put = backend.choose(x, numpy=_put_reference, numba=_put_numba, cuda=_put_cuda)
    return put(x, index, window), MaxUnpool2dCache(index, window, x.dtype)


def max_unpool2d_backward(dy: Array, cache: MaxUnpool2dCache) -> Array:
    """The gradient with respect to `x`, N P Q C. (The index has none.)"""
    N, _, _, C = cache.index.shape
    checks.upstream("max_unpool2d_backward", dy, (N, *cache.window.size, C), cache.dtype)
    pick = backend.choose(dy, numpy=_pick_reference, numba=_pick_numba, cuda=_pick_cuda)
    return pick(dy, cache.index, cache.window)


def _index_dtype(kernel: tuple[int, int]) -> np.dtype:
    R, S = kernel
    return np.dtype(np.uint8 if R * S <= 256 else np.int32)


def _checked_index(index: Array, x: Array, window: Window) -> Array:
    """The index in the type that kernels of this size use; an error where it cannot be such an index."""
    R, S = window.kernel
    if not hasattr(index, "dtype") or index.dtype.kind not in "iu":
        kind = getattr(index, "dtype", type(index).__name__)
        raise TypeError(f"max_unpool2d: index must be an array of integers, got {kind}")
    checks.shape("max_unpool2d", "index", index, x.shape, "that of x")
    if not isinstance(index, np.ndarray):
        # The numbers are not looked at, which would wait for the GPU: one that is too large points to no cell. So
        # they do not become bytes, in which it would wrap, and perhaps point to one.
        return index if index.dtype == np.uint8 else cuda.astype(index, np.int32)
    if index.min() < 0 or index.max() >= R * S:
        raise ValueError(
            f"max_unpool2d: index must hold numbers from 0 to R * S - 1 = {R * S - 1}, got {index.min()} to "
            f"{index.max()}; pass the cache.index of max_pool2d with the same kernel, which counts inside each "
            "window and not over the whole image"
        )
    return index.astype(_index_dtype(window.kernel), copy=False)


def _pooled_size(out: tuple[int, int], kernel: Pair, stride: Pair | None, padding: PaddingLike) -> tuple[int, int]:
    R, S = geometry.pair("max_unpool2d", "kernel", kernel, minimum=1)
    down, right = geometry.pair("max_unpool2d", "stride", kernel if stride is None else stride, minimum=1)
    P, Q = out
    if padding == "same":
        return P * down, Q * right
    sides = geometry.padding("max_unpool2d", padding, out, (R, S), (down, right), (1, 1))
    return (P - 1) * down + R - sides.top - sides.bottom, (Q - 1) * right + S - sides.left - sides.right
