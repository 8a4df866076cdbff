r"""Average pooling: the mean of each window.

    y[n, p, q, c] = 1 / (rows[p] * columns[q]) * sum over r < R, s < S of  x[n, h, w, c]

where the cell under tap (r, s) of window (p, q) is, with `padding` = (top, bottom, left, right),

    h = p * stride - top + r,    w = q * stride - left + s        x = 0 outside the image

    x                 N H W C
    y                 N P Q C       P, Q: see tinyseg/ops/geometry.py
    rows, columns     P and Q       how many rows and columns each window counts

What a window counts. With `count_include_pad` the cells in the padding count as zeros: R * S, but never more than
what the padded image holds (with `ceil_mode` the last window may hang over it). Without, only cells of the image
count, so that a constant image stays constant up to its border. These are PyTorch's rules.

Backward. Pooling is linear, so dx = A^T dy: each cell gathers its share from the windows that cover it,

    dx[n, h, w, c] = sum over p, q with  0 <= h + top - p * stride < R,  0 <= w + left - q * stride < S
                     of  dy[n, p, q, c] / (rows[p] * columns[q])

All sums are kept in float64, so that a float32 mean over a large window is as good as a small one's.

Cost: R * S additions per output. 2 x 2, stride 2, float32: 5 bytes of traffic per input element, either way.

Sources: LeCun et al., "Backpropagation applied to handwritten zip code recognition", Neural Computation 1989
(averaging as subsampling); Lin, Chen & Yan, "Network in network", ICLR 2014 (over the whole map).
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks, pooling
from tinyseg.ops.geometry import PaddingLike, Pair, Window


class AvgPool2dCache(NamedTuple):
    shape: tuple[int, ...]  # of x, N H W C
    dtype: np.dtype
    window: Window
    rows: Array  # P, integers
    columns: Array  # Q, integers


# ---------------------------------------------------------------------------------------------------- reference


def _forward_reference(x: Array, window: Window, rows: Array, columns: Array) -> Array:
    total = np.zeros((x.shape[0], *window.out, x.shape[3]), np.float64)
    extended = pooling.extend(x, window)
    for _, rows_of_tap, columns_of_tap in pooling.taps(window):
        total += extended[:, rows_of_tap, columns_of_tap]
    return (total / np.outer(rows, columns)[:, :, None]).astype(x.dtype)


def _backward_reference(dy: Array, shape: tuple[int, ...], window: Window, rows: Array, columns: Array) -> Array:
    extended = pooling.extend(np.zeros(shape, np.float64), window)
    shares = dy / np.outer(rows, columns)[:, :, None]
    for _, rows_of_tap, columns_of_tap in pooling.taps(window):
        extended[:, rows_of_tap, columns_of_tap] += shares
    return pooling.cut(extended, window).astype(dy.dtype)


# -------------------------------------------------------------------------------------------------------- Numba
# One row of the result for each step of the parallel loop; the innermost loops run over channels.


@kernel
def _forward_kernel(x, kernel, stride, start, rows, columns, y):
    N, H, W, C = x.shape
    _, P, Q, _ = y.shape
    R, S = kernel
    for row in prange(N * P):
        n, p = row // P, row % P
        h0 = p * stride[0] - start[0]
        total = np.empty(C, np.float64)
        for q in range(Q):
            w0 = q * stride[1] - start[1]
            for c in range(C):
                total[c] = 0
            for h in range(max(0, h0), min(H, h0 + R)):
                for w in range(max(0, w0), min(W, w0 + S)):
                    cell = x[n, h, w]
                    for c in range(C):
                        total[c] += cell[c]
            mean = y[n, p, q]
            share = 1 / (rows[p] * columns[q])
            for c in range(C):
                mean[c] = total[c] * share


@kernel
def _backward_kernel(dy, kernel, stride, start, rows, columns, dx):
    N, H, W, C = dx.shape
    _, P, Q, _ = dy.shape
    R, S = kernel
    for row in prange(N * H):
        n, h = row // H, row % H
        # The windows that cover row i of the padded image: p * stride <= i < p * stride + R.
        i = h + start[0]
        first_p, end_p = max(0, (i - R) // stride[0] + 1), min(P, i // stride[0] + 1)
        total = np.empty(C, np.float64)
        for w in range(W):
            j = w + start[1]
            first_q, end_q = max(0, (j - S) // stride[1] + 1), min(Q, j // stride[1] + 1)
            for c in range(C):
                total[c] = 0
            for p in range(first_p, end_p):
                for q in range(first_q, end_q):
                    share = 1 / (rows[p] * columns[q])
                    value = dy[n, p, q]
                    for c in range(C):
                        total[c] += value[c] * share
            gathered = dx[n, h, w]
            for c in range(C):
                gathered[c] = total[c]


def _forward_numba(x: Array, window: Window, rows: Array, columns: Array) -> Array:
    y = np.empty((x.shape[0], *window.out, x.shape[3]), x.dtype)
    start = (window.padding.top, window.padding.left)
    _forward_kernel(np.ascontiguousarray(x), window.kernel, window.stride, start, rows, columns, y)
    return y


def _backward_numba(dy: Array, shape: tuple[int, ...], window: Window, rows: Array, columns: Array) -> Array:
    dx = np.empty(shape, dy.dtype)
    start = (window.padding.top, window.padding.left)
    _backward_kernel(np.ascontiguousarray(dy), window.kernel, window.stride, start, rows, columns, dx)
    return dx


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, headers=["pooling.cuh"], scalars=cuda.WITH_BFLOAT16, WIDTH=(1, 4))


def _forward_cuda(x: Array, window: Window, rows: Array, columns: Array) -> Array:
    y = cuda.empty((x.shape[0], *window.out, x.shape[3]), x.dtype)
    pooling.launch(_cuda, "avg_pool_forward", (cuda.contiguous(x), *_tables(rows, columns)), window, (y,))
    return y


def _backward_cuda(dy: Array, shape: tuple[int, ...], window: Window, rows: Array, columns: Array) -> Array:
    dx = cuda.empty(shape, dy.dtype)
    pooling.launch_adjoint(_cuda, "avg_pool_backward", (cuda.contiguous(dy), *_tables(rows, columns)), window, dx)
    return dx


def _tables(*counts: Array) -> list[Array]:
    """The reciprocals of what windows count, since a GPU divides slowly."""
    return [cuda.constant(1 / count) for count in counts]


# ------------------------------------------------------------------------------------------------------- public


def avg_pool2d(
    x: Array,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, AvgPool2dCache]:
    """The mean of each window.

    x: N H W C. kernel: a number or (R, S). stride: a number or a pair, the kernel's size if left out.
    padding: a number, a pair, (top, bottom, left, right) or "same", smaller than the kernel.
    count_include_pad: whether the mean is taken over the zeros in the padding, too.
    Returns y, N P Q C.

    >>> x = np.array([[1.0, 5.0, 2.0, 0.0], [3.0, 3.0, 2.0, 4.0]]).reshape(1, 2, 4, 1)
    >>> avg_pool2d(x, 2)[0].ravel()
    array([3., 2.])
    """
    checks.floating("avg_pool2d", x=x)
    checks.rank("avg_pool2d", "x", x, "N H W C")
    window = pooling.window("avg_pool2d", x.shape[1:3], kernel, stride, padding, ceil_mode)
    rows, columns = (_counts(window, axis, count_include_pad) for axis in (0, 1))
    forward = backend.choose(x, numpy=_forward_reference, numba=_forward_numba, cuda=_forward_cuda)
    y = forward(x, window, rows, columns)
    return y, AvgPool2dCache(x.shape, x.dtype, window, rows, columns)


def avg_pool2d_backward(dy: Array, cache: AvgPool2dCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    N, _, _, C = cache.shape
    checks.upstream("avg_pool2d_backward", dy, (N, *cache.window.out, C), cache.dtype)
    backward = backend.choose(dy, numpy=_backward_reference, numba=_backward_numba, cuda=_backward_cuda)
    return backward(dy, cache.shape, cache.window, cache.rows, cache.columns)


def _counts(window: Window, axis: int, include_pad: bool) -> Array:
    """How many rows (axis 0) or columns (axis 1) each window along that axis counts."""
    size = window.size[axis]
    before, after = window.padding[2 * axis : 2 * axis + 2]
    first = np.arange(window.out[axis]) * window.stride[axis] - before
    end = first + window.kernel[axis]
    if include_pad:
        return np.minimum(end, size + after) - first
    return np.minimum(end, size) - np.maximum(first, 0)
