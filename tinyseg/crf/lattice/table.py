r"""The vertices of the lattice in use, found by sorting.

N points lie in N cells with d + 1 corners each, but many corners are the same lattice point. Sorting their codes
brings equal ones together, and gives, without a hash table and with the same result on any number of threads:

    vertex          (N, d + 1) int32    the number 0 ... M - 1 of each corner, in the order of the codes
    first           (M + 1,) int64      entries first[v] ... first[v + 1] - 1 are the points that share vertex v
    entry_point     (N (d + 1),) int32  which point, increasing for each vertex
    entry_weight    (N (d + 1),)        and its barycentric weight there
    chains          d + 1 arrays int32  for each axis, the vertices that have a neighbour along it, chain by chain
    pieces          d + 1 arrays int64  where the chains can be cut into tasks of about the same length
    closed          int                 from this axis on, all axes are cut at the same vertices

A chain is a run of vertices each of which is one step a_j ahead of the one before. The last vertex v of a chain
is written as ~v = -1 - v, for instance 4 7 ~9 2 ~5 for the chains 4 7 9 and 2 5. A blur along axis j then works on
each chain by itself, in place, and vertices without neighbours, in a large lattice a third of them, are not
touched.

Closed blocks. Steps along the axes 3 ... d leave the two most significant digits of a code as they are, so that
their chains stay among vertices with the same two digits, which are neighbours in memory. A task of one of these
axes works on the chains of some such blocks, the same blocks for each axis: they can be blurred along all of these
axes before the next block is touched, while they are in the cache.

A neighbour's code is the vertex's own code plus a constant, and in a sorted list all are found by walking along
with two fingers, because the neighbour grows with the vertex.

Cost: sorting takes ceil(bits / 13) passes over N (d + 1) pairs of code and entry, packed into 8 bytes each (codes
of more than 32 bits are sorted by their lower 32 bits, then by the others); the chains d + 1 walks over M codes.
The codes are dropped afterwards.

Source: the table replaces the hash table of Adams, Baek & Davis 2010, section 3.2; radix sort: Knuth, "The Art of
Computer Programming", vol. 3, section 5.2.5.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf.lattice.device_table import build_on_device
from tinyseg.crf.lattice.simplex import Packing, Simplices

DIGIT = 13  # bits that one pass of the sort looks at
CODE, ENTRY = 32, 31  # bits of an item of the sort: of a code, and of the number of an entry behind them
LAST_CODE, LAST_ENTRY = (1 << CODE) - 1, (1 << ENTRY) - 1
CHUNKS = 8  # tasks of the sort; between its passes, 2^13 numbers of each are added up by one thread
PIECES = 64  # tasks of a blur along one axis
BLOCK = 2048  # vertices of a task that works on closed blocks, or one block if that is more


class Table(NamedTuple):
    """Who shares which vertex, and which vertices are neighbours. See the module's docstring."""

    vertex: Array
    first: Array
    entry_point: Array
    entry_weight: Array
    chains: list[Array]
    pieces: list[Array]
    closed: int

    @property
    def vertices(self) -> int:
        return len(self.first) - 1  # M


# ---------------------------------------------------------------------------------------------------- reference


def _table_reference(simplices: Simplices, pack: Packing) -> Table:
    codes, weights = simplices
    corners = codes.shape[1]
    unique, vertex, count = np.unique(codes.reshape(-1), return_inverse=True, return_counts=True)
    entry = np.argsort(vertex, kind="stable")
    chains = [_chain_reference(unique, step) for step in pack.steps]
    closed, cuts = _closed_blocks(unique, pack)
    pieces = [_pieces_reference(chain, cuts if axis >= closed else None) for axis, chain in enumerate(chains)]
    return Table(
        vertex.reshape(codes.shape).astype(np.int32),
        np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        (entry // corners).astype(np.int32),
        weights.reshape(-1)[entry],
        chains,
        pieces,
        closed,
    )


def _chain_reference(unique: Array, step: int) -> Array:
    number = {int(code): v for v, code in enumerate(unique)}
    chain = []
    for code, v in number.items():
        if code - step not in number:  # here a chain begins, if it has a second vertex
            while code + step in number:
                chain.append(v)
                code += int(step)
                v = number[code]
            if code - step in number:
                chain.append(~v)
    return np.array(chain, np.int32)


def _pieces_reference(chain: Array, cuts: Array | None) -> Array:
    begins = np.concatenate([[0], np.flatnonzero(chain < 0) + 1])
    if cuts is not None:
        first = chain[begins[:-1]]
        first = np.maximum(first, ~first)
        return begins[np.searchsorted(first, cuts)]
    wanted = np.arange(PIECES + 1) * len(chain) // PIECES
    return begins[np.searchsorted(begins, wanted)]


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _sort_kernel(codes, lowest, part, digits, items, other):
    """Sort the entries by 32 bits of their codes, from bit `part` on: least significant digit first.

    An item is these bits of a code and behind them the entry, so that both move at once, back and forth between
    two arrays.
    """
    n, size = codes.size, 1 << DIGIT
    chunk = (n + CHUNKS - 1) // CHUNKS
    place = np.empty((CHUNKS, size), np.int64)
    for digit in range(digits):
        shift = ENTRY + digit * DIGIT
        for task in prange(CHUNKS):  # how often does each value occur in each chunk?
            for value in range(size):
                place[task, value] = 0
            begin = np.int64(task) * chunk
            for k in range(begin, min(begin + chunk, n)):
                if digit == 0:
                    entry = k if part == 0 else items[k] & LAST_ENTRY
                    items[k] = (((codes[entry] - lowest) >> part & LAST_CODE) << ENTRY) + entry
                place[task, (items[k] >> shift) & (size - 1)] += 1
        total = 0
        for value in range(size):  # where does the first of each value and chunk go?
            for task in range(CHUNKS):
                count = place[task, value]
                place[task, value] = total
                total += count
        for task in prange(CHUNKS):
            begin = np.int64(task) * chunk
            for k in range(begin, min(begin + chunk, n)):
                value = (items[k] >> shift) & (size - 1)
                to = place[task, value]
                place[task, value] = to + 1
                other[to] = items[k]
        items, other = other, items


@kernel
def _count_kernel(items, count):
    """How many vertices begin in each chunk of the sorted items?"""
    chunk = (items.size + CHUNKS - 1) // CHUNKS
    for task in prange(CHUNKS):
        begin = np.int64(task) * chunk
        total = 0
        for k in range(begin, min(begin + chunk, items.size)):
            total += k == 0 or items[k] >> ENTRY != items[k - 1] >> ENTRY
        count[task] = total


@kernel
def _number_kernel(items, codes, weights, corners, before, unique, first, vertex, entry_point, entry_weight):
    """Number the vertices; `before` is the number of those that begin before each chunk."""
    chunk = (items.size + CHUNKS - 1) // CHUNKS
    corners = np.uint32(corners)
    for task in prange(CHUNKS):
        begin = np.int64(task) * chunk
        v = np.int64(before[task]) - 1
        for k in range(begin, min(begin + chunk, items.size)):
            entry = items[k] & LAST_ENTRY
            if k == 0 or items[k] >> ENTRY != items[k - 1] >> ENTRY:
                v += 1
                unique[v] = codes[entry]
                first[v] = k
            vertex[entry] = v
            entry_point[k] = np.uint32(entry) // corners
            entry_weight[k] = weights[entry]


@kernel
def _chains_kernel(unique, steps, cuts, ahead, has_back, chains, lengths, pieces, closed_pieces):
    """For each axis: who is one step ahead of whom, then along each chain from its first vertex."""
    m = unique.size
    for axis in prange(steps.size):
        step = steps[axis]
        v = other = 0
        while v < m and other < m:  # two fingers, without branches that nobody can foretell
            wanted, found = unique[v] + step, unique[other]
            ahead[axis, v] = other if wanted == found else -1
            has_back[axis, other] = wanted == found
            v += wanted <= found
            other += wanted >= found
        ahead[axis, v:] = -1
        has_back[axis, other:] = False
        n = 0
        cut = 0
        for begin in range(m):
            while cut < cuts.size and cuts[cut] <= begin:
                closed_pieces[axis, cut] = n
                cut += 1
            if ahead[axis, begin] >= 0 and not has_back[axis, begin]:
                v = begin
                while ahead[axis, v] >= 0:
                    chains[axis, n] = v
                    n += 1
                    v = ahead[axis, v]
                chains[axis, n] = ~v
                n += 1
        lengths[axis] = n
        for last in range(cut, cuts.size):
            closed_pieces[axis, last] = n
        for piece in range(PIECES + 1):
            cut = piece * n // PIECES
            while 0 < cut < n and chains[axis, cut - 1] >= 0:
                cut += 1
            pieces[axis, piece] = cut


def _sorted_items(codes: Array, pack: Packing) -> Array:
    """The entries, sorted by their codes, behind numbers that are equal where the codes are."""
    items, spare = np.empty(codes.size, np.int64), np.empty(codes.size, np.int64)
    for part in range(0, pack.bits, CODE):
        digits = -(-min(CODE, pack.bits - part) // DIGIT)
        _sort_kernel(codes, pack.lowest, part, digits, items, spare)
        if digits % 2:
            items, spare = spare, items
    if pack.bits > CODE:  # the items hold the last part of their codes alone: put the number of the vertex there
        items &= LAST_ENTRY
        np.take(codes, items, out=spare, mode="clip")
        begins = spare[1:] != spare[:-1]
        spare[0] = 0
        np.cumsum(begins, out=spare[1:])
        spare <<= ENTRY
        items |= spare
    return items


def _table_numba(simplices: Simplices, pack: Packing) -> Table:
    codes, weights = simplices
    n, corners = codes.shape
    size = codes.size
    codes = codes.reshape(-1)
    items = _sorted_items(codes, pack)
    count = np.empty(CHUNKS, np.int64)
    _count_kernel(items, count)
    before = np.cumsum(count) - count
    m = int(count.sum())
    unique, first = np.empty(m, np.int64), np.empty(m + 1, np.int64)
    first[m] = size
    vertex, entry_point = np.empty(size, np.int32), np.empty(size, np.int32)
    entry_weight = np.empty(size, weights.dtype)
    numbered = unique, first, vertex, entry_point, entry_weight
    _number_kernel(items, codes, weights.reshape(-1), corners, before, *numbered)
    ahead, has_back = np.empty((corners, m), np.int32), np.empty((corners, m), np.bool_)
    chains, lengths = np.empty((corners, m), np.int32), np.empty(corners, np.int64)
    pieces = np.empty((corners, PIECES + 1), np.int64)
    closed, cuts = _closed_blocks(unique, pack)
    closed_pieces = np.empty((corners, cuts.size), np.int64)
    _chains_kernel(unique, pack.steps, cuts, ahead, has_back, chains, lengths, pieces, closed_pieces)
    trimmed = [chain[:length].copy() for chain, length in zip(chains, lengths, strict=True)]
    cut = [*pieces[:closed], *closed_pieces[closed:]]
    return Table(vertex.reshape(n, corners), first, entry_point, entry_weight, trimmed, cut, closed)


def _closed_blocks(unique: Array, pack: Packing) -> tuple[int, Array]:
    """From which axis on blocks are closed, and the vertices with which tasks of some blocks each begin, and M."""
    m = len(unique)
    if pack.block == 1:
        return len(pack.steps), np.array([0, m])
    begins = 1 + np.flatnonzero(np.diff((unique - pack.lowest) // pack.block))  # of blocks, but for the first
    wanted = np.arange(BLOCK, m, BLOCK)
    cuts = begins[np.minimum(np.searchsorted(begins, wanted), len(begins) - 1)] if len(begins) else wanted[:0]
    return 3, np.unique(np.concatenate([[0], cuts, [m]]))


# ------------------------------------------------------------------------------------------------------- public


def build_table(simplices: Simplices, pack: Packing) -> Table:
    """Number the vertices of all cells. The codes in `simplices` may serve as work space and be lost.

    From arrays on a GPU it makes a `DeviceTable`.
    """
    if simplices.codes.size >= 2**31:
        raise ValueError(
            f"LatticeFilter: {len(simplices.codes)} points with {simplices.codes.shape[1]} corners each are more "
            "than 2^31 entries; work on a smaller image or on parts of it"
        )
    make = backend.choose(simplices.weights, numpy=_table_reference, numba=_table_numba, cuda=build_on_device)
    return make(simplices, pack)
