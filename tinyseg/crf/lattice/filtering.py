r"""Splat, blur, slice: how the lattice filters.

    splat   V_v     =  sum of weight x_i over the points i that share vertex v
    blur    V_v    <-  V_v + 1/2 (V_back(v) + V_ahead(v))        along axis 0, then 1, ... then d
    slice   y_i     =  alpha sum_q weight_iq V_vertex(i, q)       alpha = 1 / (1 + 2^-d)

As matrices, K = alpha W B_d ... B_1 B_0 Wᵀ, with W the weights (N, M). Each B is symmetric, so that the transpose
of K is the same with the axes in reverse order. The order matters, a little: a blur finds only vertices that
exist, none are added for it, and where some are missing the B do not commute (K and Kᵀ differ by 1 % for d = 2, 8
% for d = 5).

The result approximates the Gaussian filter up to a gain: each B doubles the total mass. On a densely sampled
plane K has 0.88 (d = 2) or 0.71 (d = 5) of the mass of exp(-|f|² / 2), and fewer where vertices are missing. A
normalised filter divides by K 1 and does not see it.

    x, y  (N, L)      V  (rows, L): the vertices, then a row of zeros that stands for missing neighbours, then
                      the parts of vertices that the splat of one task leaves to be added

All three gather: a vertex sums its points, a point sums its corners. A vertex may be shared by very many points,
the sky of a photograph: the list of all (vertex, point) pairs is cut in equal pieces, one task each, and a vertex
that continues from one piece into the next gets the parts added afterwards, in order. The same bits on any number
of threads.

Cost for L columns: N (d + 1) multiply-adds to splat and to slice, 2 M (d + 1) additions to blur, times L; the blur
moves 8 M L (d + 1) bytes in float32 and is what large lattices spend their time on.

Source: Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice", Eurographics 2010.
"""

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf.lattice.table import Table

PIECE = 4096  # entries of one task of the splat


# ---------------------------------------------------------------------------------------------------- reference


def _splat_reference(x: Array, scale: Array, table: Table, out: Array) -> None:
    out[:] = 0
    point = table.entry_point
    vertex = np.repeat(np.arange(table.vertices), np.diff(table.first))
    np.add.at(out, vertex, (table.entry_weight * scale[point])[:, None] * x[point])


def _blur_reference(values: Array, back: Array, ahead: Array, out: Array) -> None:
    m = len(back)
    out[:m] = values[:m] + values.dtype.type(0.5) * (values[back] + values[ahead])
    out[m] = 0


def _slice_reference(values: Array, table: Table, weight: Array, scale: Array, out: Array) -> None:
    out[:] = 0
    for q in range(weight.shape[1]):
        out += weight[:, q, None] * values[table.vertex[:, q]]
    out *= scale[:, None]


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _splat_kernel(x, scale, first, entry_point, entry_weight, starts, out):
    labels = x.shape[1]
    parts = first.size  # row M + 1, where the parts of vertices that began in an earlier piece are kept
    for piece in prange(starts.size):
        begin = np.int64(piece) * PIECE
        end = min(begin + PIECE, entry_point.size)
        v = np.int64(starts[piece])  # the vertex that entry `begin` belongs to
        while begin < end:
            row = parts + np.int64(piece) if first[v] < begin else v
            stop = min(first[v + 1], end)
            for c in range(labels):
                out[row, c] = 0
            for k in range(begin, stop):
                point = entry_point[k]
                weight = entry_weight[k] * scale[point]
                for c in range(labels):
                    out[row, c] += weight * x[point, c]
            begin = stop
            v += 1
    for piece in range(starts.size):
        v = starts[piece]
        if first[v] < piece * PIECE:
            for c in range(labels):
                out[v, c] += out[parts + piece, c]


@kernel
def _blur_kernel(values, back, ahead, half, out):
    labels = values.shape[1]
    for v in prange(back.size):
        before, after = back[v], ahead[v]
        for c in range(labels):
            out[v, c] = values[v, c] + half * (values[before, c] + values[after, c])


@kernel
def _slice_kernel(values, vertex, weight, scale, out):
    points, corners = vertex.shape
    labels = values.shape[1]
    for i in prange(points):
        for c in range(labels):
            out[i, c] = 0
        for q in range(corners):
            v = vertex[i, q]
            share = weight[i, q] * scale[i]
            for c in range(labels):
                out[i, c] += share * values[v, c]


def _splat_numba(x: Array, scale: Array, table: Table, out: Array) -> None:
    starts = np.searchsorted(table.first, np.arange(0, len(table.entry_point), PIECE), side="right") - 1
    _splat_kernel(x, scale, table.first, table.entry_point, table.entry_weight, starts, out)
    out[table.vertices] = 0


def _blur_numba(values: Array, back: Array, ahead: Array, out: Array) -> None:
    _blur_kernel(values, back, ahead, values.dtype.type(0.5), out)
    out[len(back)] = 0


def _slice_numba(values: Array, table: Table, weight: Array, scale: Array, out: Array) -> None:
    _slice_kernel(values, table.vertex, weight, scale, out)


# ------------------------------------------------------------------------------------------------------- public


def rows(table: Table) -> int:
    """How many rows the arrays of vertex values have: M, one of zeros, and one for each piece of the splat."""
    return table.vertices + 1 + -(-len(table.entry_point) // PIECE)


def splat(x: Array, scale: Array, table: Table, out: Array) -> None:
    """out (rows, L) = Wᵀ (scale x): gather the points (N, L), each times its scale (N,), at the vertices."""
    backend.choose(x, numpy=_splat_reference, numba=_splat_numba)(x, scale, table, out)


def blur(values: Array, table: Table, spare: Array, *, reverse: bool = False) -> Array:
    """Blur (rows, L) along all axes. Works in `values` and `spare` in turn; returns the one with the result."""
    once = backend.choose(values, numpy=_blur_reference, numba=_blur_numba)
    for back, ahead in table.neighbours[::-1] if reverse else table.neighbours:
        once(values, back, ahead, spare)
        values, spare = spare, values
    return values


def slice_points(values: Array, table: Table, weight: Array, scale: Array, out: Array) -> None:
    """out (N, L) = scale (W values): each point gathers its corners from the vertices (rows, L)."""
    backend.choose(values, numpy=_slice_reference, numba=_slice_numba)(values, table, weight, scale, out)
