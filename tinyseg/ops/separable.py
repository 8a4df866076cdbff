r"""Linear maps that treat rows and columns separately: what resizing, padding and cropping share.

    y[n, p, q, c] = sum over h, w of  A[p, h] * B[q, w] * x[n, h, w, c]        in short, y = A x B^T

    x     N H W C
    y     N P Q C
    A     P H         row p holds the weights of the few rows of x that row p of y is made of
    B     Q W         the same for columns

Backward. The adjoint exchanges the roles, dx = A^T dy B: each cell gathers the outputs that it had a part in. So
both passes are the same sum with another pair of matrices, and share one kernel; nothing is scattered.

A `Table` lists the non-zero entries of a matrix. Only these are looked at: a NaN reaches the outputs that it has a
part in and no others. First rows, then columns are combined, which is the cheaper order for an enlargement. Sums
are kept in the type of x; they are short, one over the entries of a row and one over those of a column.

Cost: 2 operations for each entry of a table and each element of its line. With E entries for each row and F for
each column of the result, about 2 E (W / Q) + 2 F per output element; traffic is one reading of x and one writing
of y.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks


class Table(NamedTuple):
    """A sparse matrix for one axis, as a list of its entries: result[target] += weight * given[source]."""

    target: Array  # in ascending order; a target may have several entries, or none (it becomes 0)
    source: Array
    weight: Array  # float64
    count: int  # of targets


class SeparableCache(NamedTuple):
    shape: tuple[int, ...]  # of x, N H W C
    rows: Table  # A
    columns: Table  # B
    dtype: np.dtype  # of x and y


def table(target: Array, source: Array, weight: Array, count: int) -> Table:
    """A table from entries in any order."""
    order = np.lexsort([source, target])
    return Table(target[order], source[order], weight[order], count)


def transposed(a: Table, count: int) -> Table:
    """A^T. count: how many targets A^T has, that is, how many sources A was made for."""
    return table(a.source, a.target, a.weight, count)


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


def _arrays(a: Table, dtype: np.dtype) -> tuple[Array, Array, Array]:
    """Where each target's entries start (and the last one's end), then their sources and weights."""
    start = np.searchsorted(a.target, np.arange(a.count + 1))
    return start, a.source, a.weight.astype(dtype)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16, WIDTH=(1, 4), TAPS=(0, 2, 4))

THREADS, ROWS = 256, 4  # of a block; that a thread makes


def _combine_cuda(x: Array, rows: Table, columns: Table) -> Array:
    x = cuda.contiguous(x)
    (N, H, W, C), P, Q = x.shape, rows.count, columns.count
    y = cuda.empty((N, P, Q, C), x.dtype)
    taps = [_most_entries(rows), _most_entries(columns)]
    known = {2: 2, 3: 4, 4: 4}.get(max(taps), 0)  # bilinear resizing by 2, and back
    if known:
        taps = [known, known]
    tables = []
    for axis, number in zip((rows, columns), taps, strict=True):
        tables += map(cuda.constant, _by_target(axis, number, cuda.real(x.dtype)))
    pack = cuda.pack_width(C)
    blocks = N * -(-P // ROWS), -(-Q * C // (pack * THREADS))
    _cuda.launch("combine", x, *tables, *taps, C, H, W * C, P, Q, y, blocks=blocks, WIDTH=pack, TAPS=known)
    return y


def _most_entries(a: Table) -> int:
    """That any target has, and at least 1."""
    return max(1, int(np.bincount(a.target).max(initial=0)))


def _by_target(a: Table, most: int, dtype: np.dtype) -> tuple[Array, Array]:
    """The sources and weights of each target in a row of their own, (count, most). Source -1 is none."""
    source, weight = np.full((a.count, most), -1, np.int32), np.zeros((a.count, most), dtype)
    number = np.arange(len(a.target)) - np.searchsorted(a.target, a.target)
    source[a.target, number], weight[a.target, number] = a.source, a.weight
    return source, weight


# ----------------------------------------------------------------------------------------------- both directions


def forward(x: Array, rows: Table, columns: Table) -> tuple[Array, SeparableCache]:
    combine = backend.choose(x, numpy=_combine_reference, numba=_combine_numba, cuda=_combine_cuda)
    return combine(x, rows, columns), SeparableCache(x.shape, rows, columns, x.dtype)


def backward(operator: str, dy: Array, cache: SeparableCache) -> Array:
    """The gradient with respect to `x`, N H W C. operator: for the messages of errors."""
    N, H, W, C = cache.shape
    checks.upstream(operator, dy, (N, cache.rows.count, cache.columns.count, C), cache.dtype)
    combine = backend.choose(dy, numpy=_combine_reference, numba=_combine_numba, cuda=_combine_cuda)
    return combine(dy, transposed(cache.rows, H), transposed(cache.columns, W))
