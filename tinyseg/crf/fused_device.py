r"""Mean field on lattices on a GPU: all lattices joined to one, and a whole update in one pass over the pixels.

The idea is that of `fused`: a pixel gathers its corners from the vertices of all lattices, and takes the softmax,
while its numbers are in registers.

    X_i  =  -U_i  +  sum over corners k of  share_ik V_vertex(i, k)             Q_i  =  softmax(X_i)
    V_v  =  sum over entries of  gift Q_point

    share_ik  =  -c alpha (D_after)_i weight_ik          gift  =  (D_before)_point weight

The vertices of all lattices stand one below the other, and their entries, too. So an iteration takes one splat,
one blur for each axis of the largest lattice (the vertices of a smaller one have no neighbours along the rest, and
keep what they are), and one update. Rows hold a multiple of four labels: those that are added are impossible.

Couplings must be numbers that the host knows, as for the Potts model. Other models take the plain way, that of
`mean_field`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.crf.filters import Normalised
from tinyseg.crf.lattice import LatticeFilter
from tinyseg.crf.lattice.device_filtering import blur, splat
from tinyseg.crf.lattice.device_table import DeviceTable

_cuda = cuda.KernelFile(__file__)

PACK = 4  # labels of one lane
MOST_LABELS = 32 * PACK  # of one pixel
INT = np.dtype(np.int32)


class Plan(NamedTuple):
    """All lattices as one: a table with `gift` for weights, and the shares (N, corners of all)."""

    table: DeviceTable
    share: Array


def applies_to(unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised]) -> bool:
    """Can this model be run here?"""
    return (
        cuda.on_gpu(unary)
        and len(filters) > 0
        and unary.shape[1] <= MOST_LABELS
        and all(coupling.ndim == 0 and not cuda.on_gpu(coupling) for coupling in couplings)
        and all(isinstance(f.kernel, LatticeFilter) and f.kernel.weight.dtype == unary.dtype for f in filters)
        and all(f.norm.dtype == unary.dtype for f in filters)
    )


def marginals(
    unary: Array, couplings: Sequence[Array], filters: Sequence[Normalised], iterations: int, *, all_steps: bool
) -> Iterator[Array]:
    """Q^0, Q^1, ... Q^iterations, each (N, L), or the last alone."""
    unary = cuda.contiguous(unary)
    plan = make_plan(couplings, filters)
    labels = unary.shape[1]
    q = _update(unary, None, plan, padded=iterations > 0)
    for step in range(iterations):
        if all_steps:
            yield q[:, :labels]
        values = blur(splat(q, plan.table), plan.table)
        q = _update(unary, values, plan, padded=step < iterations - 1)
    yield q


def _update(unary: Array, values: Array | None, plan: Plan, *, padded: bool) -> Array:
    """Q from the values of the vertices (R, C), or from the unary energies alone: (N, C), or (N, L)."""
    points, labels = unary.shape
    columns = -(-labels // PACK) * PACK
    stride = columns if padded else labels
    q = cuda.empty((points, stride), unary.dtype)
    width = cuda.lanes(columns // PACK)
    vertex, share = plan.table.vertex, plan.share
    numbers = (points, share.shape[1], labels, columns, width, stride)
    _cuda.launch("update", unary, values, vertex, share, *numbers, q, threads=points * width)
    return q


def make_plan(couplings: Sequence[Array], filters: Sequence[Normalised]) -> Plan:
    """Join the tables of all lattices."""
    lattices = [f.kernel for f in filters if isinstance(f.kernel, LatticeFilter)]
    tables: list[DeviceTable] = [lattice.table for lattice in lattices]  # type: ignore[misc]
    points, dtype = lattices[0].points, lattices[0].weight.dtype
    corners, entries, runs, vertices = (
        np.cumsum([0, *counts])
        for counts in (
            [table.vertex.shape[1] for table in tables],
            [table.entry_point.size for table in tables],
            [table.runs for table in tables],
            [table.vertices for table in tables],
        )
    )
    axes = max(table.vertex.shape[1] for table in tables)
    shapes = {
        "vertex": (points, corners[-1]),
        "entry_point": (entries[-1],),
        "run_first": (runs[-1] + 1,),
        "run_vertex": (runs[-1],),
        "vertex_first": (vertices[-1] + 1,),
        "neighbours": (axes, vertices[-1], 2),
    }
    joined = {name: cuda.empty(shape, INT) for name, shape in shapes.items()}
    gift, share = cuda.empty((entries[-1],), dtype), cuda.empty((points, corners[-1]), dtype)
    for m, (lattice, table, f, coupling) in enumerate(zip(lattices, tables, filters, couplings, strict=True)):
        given = (table.vertex, lattice.weight, f.after, -lattice.alpha * float(coupling), vertices[m])
        numbers = (table.vertex.size, table.vertex.shape[1], corners[m], corners[-1])
        _cuda.launch("join_corners", *given, *numbers, joined["vertex"], share, threads=table.vertex.size)
        given = (table.entry_point, table.entry_weight, f.before, table.entry_point.size, entries[m])
        _cuda.launch("join_entries", *given, joined["entry_point"], gift, threads=table.entry_point.size)
        _join(table.run_first, entries[m], joined["run_first"], runs[m])
        _join(table.run_vertex, vertices[m], joined["run_vertex"], runs[m])
        _join(table.vertex_first, runs[m], joined["vertex_first"], vertices[m])
        _join(table.neighbours, vertices[m], joined["neighbours"], 2 * vertices[m])
    return Plan(DeviceTable(**joined, entry_weight=gift), share)


def _join(numbers: Array, shift: int, to: Array, begin: int) -> None:
    """Copy numbers that count something of one lattice, so that they count it in all of them."""
    rows, to_rows = (len(array) if array.ndim == 3 else 1 for array in (numbers, to))
    count, stride = numbers.size // rows, to.size // to_rows
    blocks = (-(-count // 256), to_rows)
    _cuda.launch("join_numbers", numbers, rows, count, shift, to, begin, stride, blocks=blocks)
