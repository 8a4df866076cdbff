r"""The vertices of the lattice in use, found by sorting.

N points lie in N cells with d + 1 corners each, but many corners are the same lattice point. Sorting their codes
brings equal ones together, and gives, without a hash table and with the same result on any number of threads:

    vertex          (N, d + 1) int32    the number 0 ... M - 1 of each corner, in the order of the codes
    first           (M + 1,) int64      entries first[v] ... first[v + 1] - 1 are the points that share vertex v
    entry_point     (N (d + 1),) int32  which point, increasing for each vertex
    entry_weight    (N (d + 1),)        and its barycentric weight there
    neighbours      (d + 1, 2, M) int32 one step back and one ahead along each axis; M where there is no vertex

A neighbour's code is a vertex's own code plus a constant, and in a sorted list it is found by walking along: for
growing v the neighbour grows too. So the blur reads three streams that all run forwards, which caches like.

Cost: sorting takes ceil(bits / 11) passes over N (d + 1) pairs of code and entry, 12 bytes each, and the
neighbours 2 (d + 1) walks over M codes. The codes are dropped afterwards.

Source: the table replaces the hash table of Adams, Baek & Davis 2010, section 3.2; radix sort: Knuth, "The Art of
Computer Programming", vol. 3, section 5.2.5.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf.lattice.simplex import Packing, Simplices

DIGIT = 11  # bits that one pass of the sort looks at
CHUNKS = 16  # tasks of the sort; a constant, so that the order of work does not depend on the machine


class Table(NamedTuple):
    """Who shares which vertex, and which vertices are neighbours: see the module's docstring."""

    vertex: Array
    first: Array
    entry_point: Array
    entry_weight: Array
    neighbours: Array

    @property
    def vertices(self) -> int:
        return len(self.first) - 1  # M


# ---------------------------------------------------------------------------------------------------- reference


def _table_reference(simplices: Simplices, pack: Packing) -> Table:
    codes, weights = simplices
    corners = codes.shape[1]
    unique, vertex, count = np.unique(codes.reshape(-1), return_inverse=True, return_counts=True)
    entry = np.argsort(vertex, kind="stable")
    neighbours = np.empty((corners, 2, len(unique)), np.int32)
    for axis in range(corners):
        for side, step in enumerate((-pack.steps[axis], pack.steps[axis])):
            place = np.searchsorted(unique, unique + step)
            found = unique[np.minimum(place, len(unique) - 1)] == unique + step
            neighbours[axis, side] = np.where(found, place, len(unique))
    return Table(
        vertex.reshape(codes.shape).astype(np.int32),
        np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        (entry // corners).astype(np.int32),
        weights.reshape(-1)[entry],
        neighbours,
    )


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _sort_kernel(codes, entries, lowest, digits, other_codes, other_entries):
    """Sort codes, and the numbers 0, 1, ... with them: least significant digit first, back and forth."""
    n, size = codes.size, 1 << DIGIT
    chunk = (n + CHUNKS - 1) // CHUNKS
    place = np.empty((CHUNKS, size), np.int64)
    for digit in range(digits):
        shift = digit * DIGIT
        for task in prange(CHUNKS):  # how often does each value occur in each chunk?
            for value in range(size):
                place[task, value] = 0
            begin = np.int64(task) * chunk
            for k in range(begin, min(begin + chunk, n)):
                place[task, ((codes[k] - lowest) >> shift) & (size - 1)] += 1
        total = 0
        for value in range(size):  # where does the first of each value and chunk go?
            for task in range(CHUNKS):
                count = place[task, value]
                place[task, value] = total
                total += count
        for task in prange(CHUNKS):
            begin = np.int64(task) * chunk
            for k in range(begin, min(begin + chunk, n)):
                value = ((codes[k] - lowest) >> shift) & (size - 1)
                to = place[task, value]
                place[task, value] = to + 1
                other_codes[to] = codes[k]
                other_entries[to] = entries[k] if digit > 0 else k
        codes, other_codes = other_codes, codes
        entries, other_entries = other_entries, entries


@kernel
def _count_kernel(codes, count):
    """How many vertices begin in each chunk of the sorted codes?"""
    chunk = (codes.size + CHUNKS - 1) // CHUNKS
    for task in prange(CHUNKS):
        begin = np.int64(task) * chunk
        total = 0
        for k in range(begin, min(begin + chunk, codes.size)):
            total += k == 0 or codes[k] != codes[k - 1]
        count[task] = total


@kernel
def _number_kernel(codes, entries, weights, corners, before, unique, first, vertex, entry_point, entry_weight):
    """Number the vertices; `before` is the number of those that begin before each chunk."""
    chunk = (codes.size + CHUNKS - 1) // CHUNKS
    corners = np.uint32(corners)
    for task in prange(CHUNKS):
        begin = np.int64(task) * chunk
        v = np.int64(before[task]) - 1
        for k in range(begin, min(begin + chunk, codes.size)):
            if k == 0 or codes[k] != codes[k - 1]:
                v += 1
                unique[v] = codes[k]
                first[v] = k
            entry = entries[k]
            vertex[entry] = v
            entry_point[k] = np.uint32(entry) // corners
            entry_weight[k] = weights[entry]


@kernel
def _neighbours_kernel(unique, steps, neighbours):
    """Walk along the sorted codes, and with a second finger along the codes that are one step further."""
    m = unique.size
    chunk = (m + CHUNKS - 1) // CHUNKS
    for task in prange(CHUNKS * 2 * steps.size):
        axis = np.int64(task) // (2 * CHUNKS)
        side = np.int64(task) // CHUNKS % 2
        begin = np.int64(task) % CHUNKS * chunk
        end = min(begin + chunk, m)
        if begin < end:
            step = steps[axis] if side == 1 else -steps[axis]
            found = neighbours[axis, side]
            other = np.searchsorted(unique, unique[begin] + step)
            for v in range(begin, end):
                wanted = unique[v] + step
                while other < m and unique[other] < wanted:
                    other += 1
                found[v] = other if other < m and unique[other] == wanted else m


def _table_numba(simplices: Simplices, pack: Packing) -> Table:
    codes, weights = simplices
    n, corners = codes.shape
    size = codes.size
    codes, entries = codes.reshape(-1), np.empty(size, np.int32)
    spare_codes, spare_entries = np.empty(size, np.int64), np.empty(size, np.int32)
    digits = max(1, -(-pack.bits // DIGIT))
    _sort_kernel(codes, entries, pack.lowest, digits, spare_codes, spare_entries)
    if digits % 2:
        codes, entries = spare_codes, spare_entries

    count = np.empty(CHUNKS, np.int64)
    _count_kernel(codes, count)
    before = np.cumsum(count) - count
    m = int(count.sum())
    unique, first = np.empty(m, np.int64), np.empty(m + 1, np.int64)
    first[m] = size
    vertex, entry_point = np.empty(size, np.int32), np.empty(size, np.int32)
    entry_weight = np.empty(size, weights.dtype)
    _number_kernel(
        codes, entries, weights.reshape(-1), corners, before, unique, first, vertex, entry_point, entry_weight
    )
    neighbours = np.empty((corners, 2, m), np.int32)
    _neighbours_kernel(unique, pack.steps, neighbours)
    return Table(vertex.reshape(n, corners), first, entry_point, entry_weight, neighbours)


# ------------------------------------------------------------------------------------------------------- public


def build_table(simplices: Simplices, pack: Packing) -> Table:
    """Number the vertices of all cells. The codes in `simplices` serve as work space and are lost."""
    if simplices.codes.size >= 2**31:
        raise ValueError(
            f"LatticeFilter: {len(simplices.codes)} points with {simplices.codes.shape[1]} corners each are more "
            "than 2^31 entries; work on a smaller image or on parts of it"
        )
    make = backend.choose(simplices.weights, numpy=_table_reference, numba=_table_numba)
    return make(simplices, pack)
