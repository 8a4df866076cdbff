r"""Mean field on lattices, with the whole update after the blur in one pass over the pixels.

`mean_field` writes the update of X as a sum of messages, each an array (N, L) that is filled, scaled, coupled and
added in passes of its own. Each pass over 2 · 10^5 pixels and 21 labels moves 16 MB, and there would be nine of
them per iteration. Here a pixel does everything at once, while its numbers are at hand:

    X_i  =  -U_i + sum over lattices m and corners q of  share_imq V_m,vertex(i, q)          Q_i  =  softmax(X_i)

    share_imq  =  -c_m alpha_m after_mi weight_imq

The corners of all lattices stand in one table (N, corners of all lattices), and their vertices in one array of
rows. The coupling c_m enters into the shares if it is a number; a vector or a matrix is applied to the vertices,
since labels and pixels do not mix: C (F Q) = F (C Q).

The results are those of `mean_field` up to rounding; they do not keep what a backward pass needs. float32 only.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array
from tinyseg.crf.filters import Normalised
from tinyseg.crf.lattice import LatticeFilter, filtering
from tinyseg.crf.lattice.table import Table
from tinyseg.crf.mean_field import couple
from tinyseg.crf.row_kernels import LANES, blur_rows, join_corners, splat_rows, starts_of, update_rows


def applies_to(unary: Array, filters: Sequence[Normalised]) -> bool:
    """Can this model be run here? It can if it is float32, on the CPU with Numba, and all filters are lattices."""
    return (
        unary.dtype == np.float32
        and backend.name_for(unary) == "numba"
        and len(filters) > 0
        and all(isinstance(f.kernel, LatticeFilter) and f.norm.dtype == np.float32 for f in filters)
    )


def marginals(
    unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised], iterations: int
) -> Iterator[Array]:
    """Q^0, Q^1, ... Q^iterations, each (N, L). All are the same array, which the next step overwrites."""
    points, labels = unary.shape
    unary = _padded(unary)
    columns = unary.shape[1]
    starts = starts_of(columns)
    q = np.empty_like(unary)
    none = np.empty((points, 0), np.int32), np.empty((points, 0), np.float32)
    update_rows(unary.reshape(-1), columns, starts, unary.reshape(-1), *none, q.reshape(-1))  # softmax(-U)
    yield q[:, :labels]
    if iterations == 0:
        return

    lattices = [f.kernel for f in filters if isinstance(f.kernel, LatticeFilter)]
    tables = [lattice.table for lattice in lattices]
    weights = [_splat_weights(f, table) for f, table in zip(filters, tables, strict=True)]
    pieces = [filtering.pieces_of_splat(table) for table in tables]
    offset = np.cumsum([0, *(filtering.rows(table) for table in tables)])
    vertex, share = _shares(lattices, filters, couplings, offset)
    values = np.empty((offset[-1], columns), np.float32)
    for _ in range(iterations):
        for m, table in enumerate(tables):
            block = values[offset[m] : offset[m] + filtering.rows(table)]
            row = block.reshape(-1), columns, starts
            splat_rows(q.reshape(-1), *row[1:], table.first, table.entry_point, weights[m], pieces[m], row[0])
            for chain, cuts in zip(table.chains, table.pieces, strict=True):
                blur_rows(*row, chain, cuts)
            if couplings[m].ndim > 0:
                block[: table.vertices, :labels] = couple(couplings[m], block[: table.vertices, :labels])
        update_rows(unary.reshape(-1), columns, starts, values.reshape(-1), vertex, share, q.reshape(-1))
        yield q[:, :labels]


def _splat_weights(kernel: Normalised, table: Table) -> Array:
    """D_before and the barycentric weights in one: for each entry of the table."""
    if kernel.before is None:
        return table.entry_weight
    weights = np.take(kernel.before, table.entry_point)
    weights *= table.entry_weight
    return weights


def _padded(unary: Array) -> Array:
    """At least as many labels as a register holds: those that are added are impossible."""
    missing = LANES - unary.shape[1]
    if missing <= 0:
        return np.ascontiguousarray(unary)
    return np.pad(unary, ((0, 0), (0, missing)), constant_values=np.inf)


def _shares(
    lattices: Sequence[LatticeFilter], filters: Sequence[Normalised], couplings: Sequence[Array], offset: Array
) -> tuple[Array, Array]:
    """For each pixel the rows of `values` that it gathers, and how much of each: (N, corners) int32, float32."""
    points = lattices[0].points
    columns = np.cumsum([0, *(lattice.weight.shape[1] for lattice in lattices)])
    vertex, share = np.empty((points, columns[-1]), np.int32), np.empty((points, columns[-1]), np.float32)
    for m, lattice in enumerate(lattices):
        after = filters[m].after
        after = np.ones(points, np.float32) if after is None else after.reshape(-1)
        scale = np.float32(-lattice.alpha * (float(couplings[m]) if couplings[m].ndim == 0 else 1))
        join_corners(lattice.table.vertex, lattice.weight, scale, after, offset[m], columns[m], vertex, share)
    return vertex, share
