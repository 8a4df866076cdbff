"""The vertices of the lattice in use, found by sorting on a GPU. See `table`, which does it on the CPU.

    vertex          (N, d + 1) int32    the number 0 ... M - 1 of each corner, in the order of the codes
    entry_point     (N (d + 1),) int32  which point, sorted by vertex, increasing for each of them
    entry_weight    (N (d + 1),)        and its barycentric weight there
    run_first       (R + 1,) int32      runs: the entries are cut where a vertex begins, and at multiples of 128
    run_vertex      (R,) int32          the vertex of each run
    vertex_first    (M + 1,) int32      the run with which each vertex begins
    neighbours      (d + 1, M, 2) int32 the vertices one step back and one step ahead along each axis; -1: none

Runs bound how long one thread adds: a vertex of the sky may have 10^5 entries, and one of a textured wall has one.

Sorting. Codes are sorted by six bits at a time, least significant first, as on the CPU. In each pass, every block
counts the values of the digit in its tile of entries; all counts are added up, value by value, which tells where
the first entry of each value and tile goes; and every block moves its entries there, in their order. The result is
the one stable order: no atomics, and the same bits at every run.

The neighbours' codes are known, the vertex's own plus or minus a constant. They are looked up by halving the
sorted codes, which is cheap on a GPU: the lanes of a warp look for codes that are close, and take nearly the same
way.

The host learns the number of vertices and of runs, to allocate them: it waits for the GPU once for each lattice.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array

if TYPE_CHECKING:
    from tinyseg.crf.lattice.simplex import Packing, Simplices

_cuda = cuda.KernelFile(__file__)

# The same numbers stand in device_table.cu.
TILE = 4096  # entries of a block
DIGIT = 6  # bits
VALUES = 1 << DIGIT

MOST = 1 << 30  # entries: their vertices and runs together are counted in 31 bits
INT = np.dtype(np.int32)


class DeviceTable(NamedTuple):
    """Who shares which vertex, and which vertices are neighbours. See the module's docstring."""

    vertex: Array
    entry_point: Array
    entry_weight: Array
    run_first: Array
    run_vertex: Array
    vertex_first: Array
    neighbours: Array

    @property
    def vertices(self) -> int:
        return len(self.vertex_first) - 1  # M

    @property
    def runs(self) -> int:
        return len(self.run_vertex)  # R


def build_on_device(simplices: "Simplices", pack: "Packing") -> DeviceTable:
    """The table of all cells, from arrays on the GPU."""
    codes, weights = simplices
    points, corners = codes.shape
    size = codes.size
    if size >= MOST:
        raise ValueError(
            f"LatticeFilter: {points} points with {corners} corners each are more than 2^30 entries; work on a "
            "smaller image or on parts of it"
        )
    codes, entries = _sorted(codes.reshape(size), pack)

    tiles = -(-size // TILE)
    counts = cuda.empty((2 * tiles + 1,), INT)
    _cuda.launch("count_begins", codes, size, counts, blocks=tiles)
    _cuda.launch("add_up", counts, 2 * tiles, blocks=1)
    vertices, both = map(int, cuda.to_host(counts[tiles::tiles]))
    runs = both - vertices

    unique = cuda.empty((vertices,), np.dtype(np.int64))
    lengths = (size, runs + 1, runs, vertices + 1, size)
    vertex, run_first, run_vertex, vertex_first, entry_point = (cuda.empty((n,), INT) for n in lengths)
    entry_weight = cuda.empty((size,), weights.dtype)
    given = (codes, entries, weights, size, corners, counts)
    numbered = (unique, vertex, run_first, run_vertex, vertex_first, entry_point, entry_weight)
    _cuda.launch("number_vertices", *given, *numbered, blocks=tiles)

    neighbours = cuda.empty((corners, vertices, 2), INT)
    steps = cuda.constant(pack.steps)
    _cuda.launch("find_neighbours", unique, steps, vertices, neighbours, blocks=(-(-vertices // 256), corners))
    vertex = vertex.reshape(points, corners)
    return DeviceTable(vertex, entry_point, entry_weight, run_first, run_vertex, vertex_first, neighbours)


def _sorted(codes: Array, pack: "Packing") -> tuple[Array, Array]:
    """The codes in ascending order, and which entry each of them was: among equals, the first one first."""
    size = codes.size
    tiles = -(-size // TILE)
    counts = cuda.empty((VALUES * tiles + 1,), INT)
    entries = None
    spare = []
    for shift in range(0, max(1, pack.bits), DIGIT):
        _cuda.launch("count_digits", codes, size, pack.lowest, shift, counts, blocks=tiles)
        _cuda.launch("add_up", counts, VALUES * tiles, blocks=1)
        to = spare or [cuda.empty((size,), codes.dtype), cuda.empty((size,), INT)]
        _cuda.launch("move_entries", codes, entries, size, pack.lowest, shift, counts, *to, blocks=tiles)
        spare = [codes, entries] if entries is not None else []
        codes, entries = to
    assert entries is not None
    return codes, entries
