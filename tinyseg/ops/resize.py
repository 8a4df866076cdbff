r"""Resizing, by the nearest cell or bilinearly, up and down.

Resizing is linear and works on rows and columns separately, with one small matrix for each axis:

    y[n, p, q, c] = sum over h, w of  A[p, h] * B[q, w] * x[n, h, w, c]

    x     N H W C
    y     N P Q C
    A     P H         row p holds the weights of the few rows of x that row p of y is made of
    B     Q W         the same for columns

Where does row p of y lie in x? Seen as points, the corner cells stay where they are (`align_corners`); seen as
little squares, the corners of the image do, and centres lie at half a cell:

    align_corners    t = p * (H - 1) / (P - 1)              (0 where P = 1)
    otherwise        t = (p + 1/2) * H / P - 1/2            (given a scale, 1 / scale in place of H / P)

    bilinear         t is clamped to 0 .. H - 1; row floor(t) has the weight 1 - (t - floor(t)), the next the rest
    nearest-exact    row floor(t + 1/2)
    nearest          with align_corners, the same; otherwise row floor(p * H / P), which looks at the upper left
                     corner of an output cell and not at its centre. Enlarging by whole numbers, the two agree

The rules, and the names of the modes, are PyTorch's (which knows no nearest with align_corners). Nothing is
averaged: shrinking to less than half the size skips cells; use avg_pool2d there.

Backward. The adjoint exchanges the roles, dx = A^T dy B: each cell gathers the outputs that it had a part in. So
both passes are the same sum with another pair of tables, and share one kernel.

A table lists the non-zero entries of A, at most two for each row of y. First rows, then columns are combined: for
an enlargement the first step is the smaller one.

Cost: bilinear, 3 operations per output element for each axis. Enlarging by 2, float32: 5 bytes of traffic per
output element, either way.

Sources: Long, Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section
3.3 (bilinear upsampling as a layer); Gonzalez & Woods, "Digital image processing", 4th ed., 2018, section 2.4.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks, geometry
from tinyseg.ops.geometry import Pair

MODES = ("bilinear", "nearest", "nearest-exact")


class Table(NamedTuple):
    """A sparse matrix for one axis, as a list of its entries: result[target] += weight * given[source]."""

    target: Array  # in ascending order
    source: Array
    weight: Array  # float64
    count: int  # of targets


class ResizeCache(NamedTuple):
    shape: tuple[int, ...]  # of x, N H W C
    rows: Table  # A
    columns: Table  # B
    dtype: np.dtype


# ------------------------------------------------------------------------------------------------------- tables


def _table(size: int, count: int, scale: float | None, mode: str, align_corners: bool) -> Table:
    """The matrix that makes `count` cells out of `size`."""
    target = np.arange(count)
    if align_corners:
        position = target * (size - 1) / max(count - 1, 1)
    else:
        # Dividing last keeps whole numbers whole: the floor of 49 * (1 / 49) would be 0.
        shift = 0.0 if mode == "nearest" else 0.5
        position = ((target + shift) * size / count if scale is None else (target + shift) / scale) - shift
    if mode != "bilinear":
        nearest = np.floor(position if mode == "nearest" and not align_corners else position + 0.5)
        return Table(target, np.clip(nearest, 0, size - 1).astype(int), np.ones(count), count)

    position = np.clip(position, 0, size - 1)
    source = np.floor(position).astype(int)
    weight = position - source
    between = weight > 0  # the others lie on a cell, and must not see its neighbour: 0 * NaN is NaN
    return _sorted(
        np.concatenate([target, target[between]]),
        np.concatenate([source, source[between] + 1]),
        np.concatenate([1 - weight, weight[between]]),
        count,
    )


def _transposed(table: Table, count: int) -> Table:
    return _sorted(table.source, table.target, table.weight, count)


def _sorted(target: Array, source: Array, weight: Array, count: int) -> Table:
    order = np.lexsort([source, target])
    return Table(target[order], source[order], weight[order], count)


# ---------------------------------------------------------------------------------------------------- reference


def _combine_reference(x: Array, rows: Table, columns: Table) -> Array:
    """A x B^T."""
    N, _, W, C = x.shape
    half = np.zeros((N, rows.count, W, C), x.dtype)
    for p, h, weight in zip(rows.target, rows.source, rows.weight.astype(x.dtype), strict=True):
        half[:, p] += weight * x[:, h]
    y = np.zeros((N, rows.count, columns.count, C), x.dtype)
    for q, w, weight in zip(columns.target, columns.source, columns.weight.astype(x.dtype), strict=True):
        y[:, :, q] += weight * half[:, :, w]
    return y


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _combine_kernel(x, row_start, row_source, row_weight, column_start, column_source, column_weight, y):
    N, H, W, C = x.shape
    _, P, Q, _ = y.shape
    lines = x.reshape(N, H, W * C)
    for row in prange(N * P):
        n, p = row // P, row % P
        half = np.zeros(W * C, x.dtype)  # row p of y, while its columns are still those of x
        for i in range(row_start[p], row_start[p + 1]):
            line, weight = lines[n, row_source[i]], row_weight[i]
            for k in range(W * C):
                half[k] += weight * line[k]
        for q in range(Q):
            result = y[n, p, q]
            for c in range(C):
                result[c] = 0
            for j in range(column_start[q], column_start[q + 1]):
                first = column_source[j] * C
                cell, weight = half[first : first + C], column_weight[j]
                for c in range(C):
                    result[c] += weight * cell[c]


def _combine_numba(x: Array, rows: Table, columns: Table) -> Array:
    y = np.empty((x.shape[0], rows.count, columns.count, x.shape[3]), x.dtype)
    _combine_kernel(np.ascontiguousarray(x), *_arrays(rows, x.dtype), *_arrays(columns, x.dtype), y)
    return y


def _arrays(table: Table, dtype: np.dtype) -> tuple[Array, Array, Array]:
    """Where each target's entries start (and the last one's end), then their sources and weights."""
    start = np.searchsorted(table.target, np.arange(table.count + 1))
    return start, table.source, table.weight.astype(dtype)


# ------------------------------------------------------------------------------------------------------- public


def resize(
    x: Array,
    size: Pair | None = None,
    *,
    scale: float | tuple[float, float] | None = None,
    mode: str = "bilinear",
    align_corners: bool = False,
) -> tuple[Array, ResizeCache]:
    """Bring images to a size, or enlarge them by a scale.

    x: N H W C. size: a number or (P, Q). scale, instead of a size: a number or a pair, more than 0; then P is
    floor(H * scale). mode: "bilinear", "nearest" or "nearest-exact"; see the top of this file for their rules.
    Returns y, N P Q C.

    >>> x = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> resize(x, (1, 4))[0].ravel()
    array([1. , 1.5, 2.5, 3. ])
    >>> resize(x, (1, 5), align_corners=True)[0].ravel()
    array([1. , 1.5, 2. , 2.5, 3. ])
    """
    checks.floating("resize", x=x)
    checks.rank("resize", "x", x, "N H W C")
    if mode not in MODES:
        raise ValueError(f"resize: mode must be one of {', '.join(MODES)}, got {mode!r}")
    H, W = x.shape[1:3]
    if scale is None:
        if size is None:
            raise ValueError("resize: give a size (P, Q) or a scale")
        P, Q = geometry.pair("resize", "size", size, minimum=1)
        scales = None, None
    else:
        if size is not None:
            raise ValueError(f"resize: give a size or a scale, not both; got size {size} and scale {scale}")
        scales = _scales(scale)
        P, Q = math.floor(H * scales[0]), math.floor(W * scales[1])
        if min(P, Q) < 1:
            raise ValueError(f"resize: scale {scale} leaves nothing of an image of {H} x {W}; use a larger one")
    rows = _table(H, P, scales[0], mode, align_corners)
    columns = _table(W, Q, scales[1], mode, align_corners)
    combine = backend.choose(x, numpy=_combine_reference, numba=_combine_numba)
    return combine(x, rows, columns), ResizeCache(x.shape, rows, columns, x.dtype)


def resize_backward(dy: Array, cache: ResizeCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    N, H, W, C = cache.shape
    checks.upstream("resize_backward", dy, (N, cache.rows.count, cache.columns.count, C), cache.dtype)
    combine = backend.choose(dy, numpy=_combine_reference, numba=_combine_numba)
    return combine(dy, _transposed(cache.rows, H), _transposed(cache.columns, W))


def _scales(scale: float | tuple[float, float]) -> tuple[float, float]:
    scales = scale if isinstance(scale, Sequence) else (scale, scale)
    if len(scales) != 2 or not all(isinstance(value, int | float | np.number) for value in scales):
        raise TypeError(f"resize: scale must be a number or a pair (height, width) of numbers, got {scale!r}")
    if not all(0 < value < math.inf for value in scales):
        raise ValueError(f"resize: scale must be more than 0 and finite, got {scale!r}")
    return float(scales[0]), float(scales[1])
