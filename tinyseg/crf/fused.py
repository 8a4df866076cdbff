r"""Mean field on lattices, in two passes over the pixels for each iteration.

`mean_field` writes the update of X as a sum of messages, each an array (N, L) that is filtered, scaled, coupled
and added in passes of its own. Each pass over 2 · 10^5 pixels and 21 labels moves 16 MB, and there would be a
dozen of them per iteration. Here a pixel gathers its corners from the vertices of all lattices and takes the
softmax while its numbers are in registers, and a vertex gathers its pixels:

    X_i  =  -U_i  +  sum over corners k of  share_ik V_vertex(i, k)             Q_i  =  softmax(X_i)
    V_v  =  sum over entries k of v of  gift_k Q_point(k)                       then the blur

    share_ik  =  -c alpha (D_after)_i weight_ik          gift_k  =  (D_before)_point(k) entry_weight_k

The corners of all lattices stand side by side, each with the coupling c, alpha and normalisation of its own. A
coupling that is no number but a vector or a matrix is applied to the vertices, since labels and pixels do not mix:
C (F Q) = F (C Q).

    values           (rows, width)      of lattice 0, as in `lattice.filtering`, then of lattice 1, ...
    vertex, share    (N, corners of all lattices)
    gifts            for each lattice (N (d + 1),)

What limits it is mostly memory, not arithmetic: for 21 labels and two lattices a pixel moves 84 bytes of U, three
times as many of Q, and 16 bytes of tables for each corner, and an iteration moves the values of each vertex some
ten times.

The results are those of `mean_field` up to rounding; they do not keep what a backward pass needs. float32 only.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array
from tinyseg.crf.filters import Normalised
from tinyseg.crf.lattice import LatticeFilter, filtering
from tinyseg.crf.lattice.table import Table
from tinyseg.crf.mean_field import couple
from tinyseg.crf.row_kernels import (
    LANES,
    blur_rows,
    join_corners,
    join_entries,
    slots_of,
    splat_rows,
    starts_of,
    update_rows,
)


class Plan(NamedTuple):
    """Who reads which rows, and how much of each. See the module's docstring."""

    vertex: Array
    share: Array
    gifts: list[Array]
    offset: Array  # (lattices + 1,): the values of lattice m are the rows offset[m] ... offset[m + 1] - 1


def applies_to(unary: Array, filters: Sequence[Normalised]) -> bool:
    """Can this model be run here? It can if it is float32, on the CPU with Numba, and all filters are lattices."""
    return (
        unary.dtype == np.float32
        and backend.name_for(unary) == "numba"
        and len(filters) > 0
        and all(isinstance(f.kernel, LatticeFilter) and f.norm.dtype == np.float32 for f in filters)
    )


def marginals(
    unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised], iterations: int, *, all_steps: bool
) -> Iterator[Array]:
    """Q^0, Q^1, ... Q^iterations, each (N, L), or the last alone. Each overwrites the one before."""
    labels = unary.shape[1]
    unary = _padded(unary)
    columns = unary.shape[1]
    starts = starts_of(columns)
    slots, label = slots_of(columns)
    width, once = len(label), np.unique(label, return_index=True)[1][:labels]
    lattices = [f.kernel for f in filters if isinstance(f.kernel, LatticeFilter)]
    plan = make_plan(lattices, filters, couplings)
    values = _aligned(plan.offset[-1] if iterations else 0, width)
    q = np.empty_like(unary)
    for step in range(iterations + 1):
        tables = plan.vertex.reshape(-1), plan.share.reshape(-1), plan.vertex.shape[1] if step > 0 else 0
        update_rows(unary.reshape(-1), columns, starts, *tables, values.reshape(-1), width, slots, q.reshape(-1))
        if step == iterations or all_steps:
            yield q[:, :labels]
        if step == iterations:
            return
        for m, lattice in enumerate(lattices):
            table, block = lattice.table, values[plan.offset[m] : plan.offset[m + 1]]
            entries, begins = (table.first, table.entry_point, plan.gifts[m]), filtering.pieces_of_splat(table)
            rows = begins, filtering.PIECE, block.reshape(-1), width, slots
            splat_rows(q.reshape(-1), columns, starts, *entries, *rows)
            for chains, pieces in _stages(table):
                blur_rows(block.reshape(-1), width, slots, chains, pieces)
            if couplings[m].ndim > 0:
                block = block[: lattice.vertices]
                block[:] = couple(couplings[m], block[:, once])[:, np.minimum(label, labels - 1)]


def make_plan(
    lattices: Sequence[LatticeFilter], filters: Sequence[Normalised], couplings: Sequence[Array]
) -> Plan:
    """Join the tables of all lattices."""
    column = np.cumsum([0, *(lattice.weight.shape[1] for lattice in lattices)])
    offset = np.cumsum([0, *(filtering.rows(lattice.table) for lattice in lattices)])
    vertex = np.empty((lattices[0].points, column[-1]), np.int32)
    share, gifts = np.empty(vertex.shape, np.float32), []
    for m, (lattice, kernel, coupling) in enumerate(zip(lattices, filters, couplings, strict=True)):
        read, write = _scales(lattice, kernel, coupling)
        table = lattice.table
        join_corners(table.vertex, lattice.weight, read, offset[m], column[m], vertex, share)
        gifts.append(np.empty(table.entry_weight.shape, np.float32))
        join_entries(table.entry_point, table.entry_weight, write, gifts[m])
    return Plan(vertex, share, gifts, offset)


def _stages(table: Table) -> list[tuple[tuple[Array, ...], Array]]:
    """The chains and pieces of each call of the blur: axis by axis, then all axes with closed blocks at once."""
    stages: list[tuple[tuple[Array, ...], Array]]
    stages = [((chain,), pieces[None]) for chain, pieces in zip(table.chains, table.pieces, strict=True)]
    if table.closed < len(stages):
        stages[table.closed :] = [(tuple(table.chains[table.closed :]), np.stack(table.pieces[table.closed :]))]
    return stages


def _scales(lattice: LatticeFilter, kernel: Normalised, coupling: Array) -> tuple[Array, Array]:
    """For each pixel the factors with which it reads vertices, and writes them."""
    factor = -lattice.alpha * (float(coupling) if coupling.ndim == 0 else 1)
    one = np.ones((lattice.points, 1), np.float32)
    read, write = (one if scale is None else scale for scale in (kernel.after, kernel.before))
    return np.float32(factor) * read[:, 0], np.ascontiguousarray(write[:, 0])


def _padded(unary: Array) -> Array:
    """At least as many labels as a register holds: those that are added are impossible."""
    missing = LANES - unary.shape[1]
    if missing <= 0:
        return np.ascontiguousarray(unary)
    return np.pad(unary, ((0, 0), (0, missing)), constant_values=np.inf)


def _aligned(rows: int, width: int) -> Array:
    """An array (rows, width) that begins with a line of the cache."""
    line = 64
    numbers = np.empty(rows * width + line // 4, np.float32)
    begin = -numbers.ctypes.data % line // 4
    return numbers[begin : begin + rows * width].reshape(rows, width)
