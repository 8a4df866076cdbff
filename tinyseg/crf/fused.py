r"""Mean field on lattices, with the whole update between two blurs in one pass over the pixels.

`mean_field` writes the update of X as a sum of messages, each an array (N, L) that is filtered, scaled, coupled
and added in passes of its own. Each pass over 2 · 10^5 pixels and 21 labels moves 16 MB, and there would be a
dozen of them per iteration. Here a pixel does everything at once, while its numbers are in registers: it gathers
its corners from the vertices of all lattices, takes the softmax, and adds the result to the vertices of the next
iteration.

    X_i  =  -U_i  +  sum over corners k of  share_ik V_vertex(i, k)             Q_i  =  softmax(X_i)
    V'_target(i, k)  +=  gift_ik Q_i

    share_ik  =  -c alpha (D_after)_i weight_ik          gift_ik  =  (D_before)_i weight_ik

The corners of all lattices stand side by side, each with the coupling c, alpha and normalisation of its own. If
c is negative and the normalisation symmetric, the factors are split evenly, and share and gift are one array. A
coupling that is no number but a vector or a matrix is applied to the vertices, since labels and pixels do not mix:
C (F Q) = F (C Q).

Adding to vertices from many threads. The image is cut into parts, one task each, and no two parts add to the same
row: the part in which a vertex first occurs adds to the vertex itself, any other part to an extra row that stands
for it. The extra rows are added to their vertices afterwards, part by part. The cuts depend on the size of the
image alone, so the bits do not depend on the number of threads. Where a part adds to a row for the first time,
target holds ~row, and what was there before is multiplied by zero.

    rows                          vertices of lattice 0, of lattice 1, ..., extra rows of part 0, of part 1, ...
    vertex, share, target, gift   (N, corners of all lattices)

The results are those of `mean_field` up to rounding; they do not keep what a backward pass needs. float32 only.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array
from tinyseg.crf.filters import Normalised
from tinyseg.crf.lattice import LatticeFilter
from tinyseg.crf.lattice.table import Table
from tinyseg.crf.mean_field import couple
from tinyseg.crf.row_kernels import (
    LANES,
    add_extra_rows,
    blur_rows,
    find_targets,
    join_corners,
    slots_of,
    starts_of,
    update_rows,
)

PARTS = 8  # of an image; more parts need more extra rows
FEWEST = 1 << 12  # pixels of a part


class Plan(NamedTuple):
    """Who reads and writes which rows. See the module's docstring."""

    tables: tuple[Array, Array, Array, Array]  # vertex, share, target, gift
    offset: Array  # (lattices + 1,): the vertices of lattice m are the rows offset[m] ... offset[m + 1] - 1
    points: int  # pixels of a part
    extra: Array  # the vertex that each extra row stands for
    begins: Array  # (parts + 1,): where the extra rows of each part begin in `extra`

    @property
    def rows(self) -> int:
        return int(self.offset[-1]) + len(self.extra)


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
    stages = [_stages(lattice.table) for lattice in lattices]
    old, new = (_aligned_zeros(plan.rows if iterations else 0, width) for _ in range(2))
    q = np.empty_like(unary)
    for step in range(iterations + 1):
        last = step == iterations
        what = (step > 0, not last, last or all_steps)  # read vertices, write vertices, write Q
        rows = old.reshape(-1), width, slots, new.reshape(-1), q.reshape(-1)
        update_rows(unary.reshape(-1), columns, starts, plan.tables, plan.points, what, *rows)
        if last or all_steps:
            yield q[:, :labels]
        if last:
            return
        add_extra_rows(new.reshape(-1), width, slots, plan.extra, plan.begins, plan.offset[-1])
        for m in range(len(lattices)):
            block = new[plan.offset[m] : plan.offset[m + 1]]
            for chains, pieces in stages[m]:
                blur_rows(block.reshape(-1), width, slots, chains, pieces)
            if couplings[m].ndim > 0:
                block[:] = couple(couplings[m], block[:, once])[:, np.minimum(label, labels - 1)]
        old, new = new, old


def make_plan(
    lattices: Sequence[LatticeFilter], filters: Sequence[Normalised], couplings: Sequence[Array]
) -> Plan:
    """Join the tables of all lattices, and give each part of the image its rows."""
    pixels = lattices[0].points
    parts = max(1, min(PARTS, pixels // FEWEST))
    points = -(-pixels // parts)
    column = np.cumsum([0, *(lattice.weight.shape[1] for lattice in lattices)])
    offset = np.cumsum([0, *(lattice.vertices for lattice in lattices)])
    vertex, target = (np.empty((pixels, column[-1]), np.int32) for _ in range(2))

    extra = []  # for each lattice: the vertices of the extra rows of each part
    for m, lattice in enumerate(lattices):
        table = lattice.table
        owner = (table.entry_point[table.first[:-1]] // points).astype(np.int32)
        found, counts = np.empty((parts, points * lattice.weight.shape[1]), np.int32), np.empty(parts, np.int64)
        find_targets(table.vertex, owner, points, column[m], target, found, counts)
        extra.append([vertices[:count].copy() for vertices, count in zip(found, counts, strict=True)])
    in_order = [extra[m][part] + offset[m] for part in range(parts) for m in range(len(lattices))]
    first = offset[-1] + np.cumsum([0, *(len(vertices) for vertices in in_order)])

    scales = [_scales(*model) for model in zip(lattices, filters, couplings, strict=True)]
    gift = np.empty(vertex.shape, np.float32)
    share = gift if all(read is write for read, write in scales) else np.empty_like(gift)
    for m, (lattice, (read, write)) in enumerate(zip(lattices, scales, strict=True)):
        extra_rows = np.array([lattice.vertices, *first[m : -1 : len(lattices)]])
        join_corners(
            *(lattice.table.vertex, lattice.weight, read, write, points, offset[m], extra_rows, column[m]),
            (vertex, share, target, gift),
        )
    begins = first[:: len(lattices)] - offset[-1]
    return Plan((vertex, share, target, gift), offset, points, np.concatenate(in_order), begins)


def _stages(table: Table) -> list[tuple[tuple[Array, ...], Array]]:
    """The chains and pieces of each call of the blur: axis by axis, then all axes with closed blocks at once."""
    stages: list[tuple[tuple[Array, ...], Array]]
    stages = [((chain,), pieces[None]) for chain, pieces in zip(table.chains, table.pieces, strict=True)]
    if table.closed < len(stages):
        stages[table.closed :] = [(tuple(table.chains[table.closed :]), np.stack(table.pieces[table.closed :]))]
    return stages


def _scales(lattice: LatticeFilter, kernel: Normalised, coupling: Array) -> tuple[Array, Array]:
    """For each pixel the factors with which it reads and writes vertices; one array for both, if it can be."""
    factor = -lattice.alpha * (float(coupling) if coupling.ndim == 0 else 1)
    one = np.ones((lattice.points, 1), np.float32)
    read, write = (one[:, 0] if scale is None else scale[:, 0] for scale in (kernel.after, kernel.before))
    if kernel.mode == "symmetric" and factor > 0:
        both = np.float32(np.sqrt(factor)) * write
        return both, both
    return np.float32(factor) * read, np.ascontiguousarray(write)


def _padded(unary: Array) -> Array:
    """At least as many labels as a register holds: those that are added are impossible."""
    missing = LANES - unary.shape[1]
    if missing <= 0:
        return np.ascontiguousarray(unary)
    return np.pad(unary, ((0, 0), (0, missing)), constant_values=np.inf)


def _aligned_zeros(rows: int, width: int) -> Array:
    """Zeros (rows, width) that begin with a line of the cache."""
    line = 64
    numbers = np.zeros(rows * width + line // 4, np.float32)
    begin = -numbers.ctypes.data % line // 4
    return numbers[begin : begin + rows * width].reshape(rows, width)
