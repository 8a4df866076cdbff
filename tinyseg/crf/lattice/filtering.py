r"""Splat, blur, slice: how the lattice filters.

    splat   V_v     =  sum of weight x_i over the points i that share vertex v
    blur    V_v    <-  V_v + 1/2 (V_back(v) + V_ahead(v))        along axis 0, then 1, ... then d
    slice   y_i     =  alpha sum_q weight_iq V_vertex(i, q)       alpha = 1 / (1 + 2^-d)

As matrices, K = alpha W B_d ... B_1 B_0 Wᵀ, with W the weights (N, M). Each B is symmetric, so that the transpose
of K is the same with the axes in reverse order. The order matters, a little: a blur finds only vertices that
exist, none are added for it, and where some are missing the B do not commute (K and Kᵀ differ by 1 % for d = 2, 8
% for d = 5).

The result approximates the Gaussian filter up to a gain: each B doubles the total mass. On a densely sampled
plane K has 0.88 (d = 2) or 0.71 (d = 5) of the mass of exp(-|f|² / 2), and less where vertices are missing. A
normalised filter divides by K 1 and does not see it.

    x, y  (N, L)      V  (rows, L): the vertices, then the parts of vertices that the splat leaves to be added

Splat and slice gather: a vertex sums its points, a point sums its corners. A vertex may be shared by very many
points, the sky of a photograph: the list of all (vertex, point) pairs is cut in equal pieces, one task each, and a
vertex that continues from one piece into the next gets the parts added afterwards, in order. The blur walks along
chains of neighbours (see `table`) in place, carrying the old value of the vertex before. Nothing is written by two
tasks, and nothing depends on how many of them run at once: the same bits on any number of threads.

Cost for L columns: N (d + 1) L multiply-adds to splat and to slice, and 2 M (d + 1) L additions to blur. The blur
reads and writes up to 8 M (d + 1) L bytes in float32, which is what large lattices spend their time on.

Source: Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice", Eurographics 2010.
"""

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf.lattice.table import Table

PIECE = 4096  # entries of one task of the splat


# ---------------------------------------------------------------------------------------------------- reference


def _splat_reference(x: Array, table: Table, out: Array) -> None:
    out[:] = 0
    vertex = np.repeat(np.arange(table.vertices), np.diff(table.first))
    np.add.at(out, vertex, table.entry_weight[:, None] * x[table.entry_point])


def _blur_reference(values: Array, chain: Array, pieces: Array) -> None:
    last = chain < 0
    vertex = np.where(last, ~chain, chain)
    old = values[vertex]
    ahead, back = np.roll(old, -1, axis=0), np.roll(old, 1, axis=0)
    ahead[last] = 0
    back[np.roll(last, 1)] = 0  # the first vertex of a chain follows the last one of another
    values[vertex] = old + values.dtype.type(0.5) * (back + ahead)


def _slice_reference(values: Array, table: Table, weight: Array, alpha: float, out: Array) -> None:
    out[:] = 0
    for q in range(weight.shape[1]):
        out += (values.dtype.type(alpha) * weight[:, q, None]) * values[table.vertex[:, q]]


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _splat_kernel(x, first, entry_point, entry_weight, starts, out):
    labels = x.shape[1]
    parts = first.size - 1  # row M, where the parts of vertices that began in an earlier piece are kept
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
                weight = entry_weight[k]
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
def _blur_kernel(values, chain, pieces, half):
    labels = values.shape[1]
    for piece in prange(pieces.size - 1):
        before = np.zeros(labels, values.dtype)  # the old values of the vertex before
        k = pieces[piece]
        while k < pieces[piece + 1]:
            v = chain[k]
            last = v < 0
            if last:
                v = ~v
                for c in range(labels):
                    values[v, c] += half * before[c]
                    before[c] = 0
            else:
                ahead = max(chain[k + 1], ~chain[k + 1])
                for c in range(labels):
                    old = values[v, c]
                    values[v, c] = old + half * (before[c] + values[ahead, c])
                    before[c] = old
            k += 1


@kernel
def _slice_kernel(values, vertex, weight, alpha, out):
    points, corners = vertex.shape
    labels = values.shape[1]
    for i in prange(points):
        for c in range(labels):
            out[i, c] = 0
        for q in range(corners):
            v = vertex[i, q]
            share = alpha * weight[i, q]
            for c in range(labels):
                out[i, c] += share * values[v, c]


def _splat_numba(x: Array, table: Table, out: Array) -> None:
    _splat_kernel(x, table.first, table.entry_point, table.entry_weight, pieces_of_splat(table), out)


def _blur_numba(values: Array, chain: Array, pieces: Array) -> None:
    _blur_kernel(values, chain, pieces, values.dtype.type(0.5))


def _slice_numba(values: Array, table: Table, weight: Array, alpha: float, out: Array) -> None:
    _slice_kernel(values, table.vertex, weight, values.dtype.type(alpha), out)


# ------------------------------------------------------------------------------------------------------- public


def rows(table: Table) -> int:
    """How many rows the arrays of vertex values have: M, and one for each piece of the splat."""
    return table.vertices + -(-len(table.entry_point) // PIECE)


def pieces_of_splat(table: Table) -> Array:
    """The vertex with which each task of the splat begins."""
    return np.searchsorted(table.first, np.arange(0, len(table.entry_point), PIECE), side="right") - 1


def splat(x: Array, table: Table, out: Array) -> None:
    """out (rows, L) = Wᵀ x: gather the points (N, L) at the vertices."""
    backend.choose(x, numpy=_splat_reference, numba=_splat_numba)(x, table, out)


def blur(values: Array, table: Table, *, reverse: bool = False) -> None:
    """Blur values (rows, L) along all axes, in place."""
    once = backend.choose(values, numpy=_blur_reference, numba=_blur_numba)
    axes = range(len(table.chains))
    for axis in reversed(axes) if reverse else axes:
        once(values, table.chains[axis], table.pieces[axis])


def slice_points(values: Array, table: Table, weight: Array, alpha: float, out: Array) -> None:
    """out (N, L) = alpha W values: each point gathers its corners from the vertices (rows, L)."""
    backend.choose(values, numpy=_slice_reference, numba=_slice_numba)(values, table, weight, alpha, out)
