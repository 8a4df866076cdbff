"""Sums over one axis of an array on the GPU, always added in the same order.

    y[l, c] = factor * sum over m of  x[l, m, c]            x (L, M, C),  y (L, C)

Any run of neighbouring axes can be the middle one, so this makes bias gradients (L = 1), means over an image
(L = N) and sums over channels (C = 1). M is split into chunks, by the shape alone, which blocks of threads sum
apart in float64; a second kernel adds the chunks. Whichever block is done first, the bits are the same.
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16)

THREADS = 256
BLOCKS = 396  # three for each of 132 multiprocessors: as many as work at the same time
SHORTEST = 16  # rows that are worth a thread
LONGEST_ROW = 4096  # that a part of a warp sums alone
MOST_SETS = 65535  # along the last axis of a grid


def over_middle(
    x: Array, sets: int, length: int, channels: int, factor: float = 1.0, dtype: np.dtype | None = None
) -> Array:
    """The sums (sets, channels) of x, an array on the GPU of sets * length * channels elements, in its type.

    dtype: another type for the sums. Gradients of parameters are `cuda.real(x.dtype)`.
    """
    x = cuda.contiguous(x)
    sums = cuda.empty((sets, channels), dtype or x.dtype)
    if channels == 1 and (length <= LONGEST_ROW or sets > MOST_SETS):
        partial, chunks = cuda.empty((sets,), np.dtype(np.float64)), 1
        width = cuda.lanes(length)
        _cuda.launch("sum_rows", x, sets, length, width, partial, threads=sets * width)
    else:
        width, tiles, chunks = split(sets, length, channels)
        partial = cuda.empty((sets, chunks, channels), np.dtype(np.float64))
        _cuda.launch("sum_chunks", x, length, channels, width, partial, blocks=(chunks, tiles, sets))
    width = cuda.lanes(chunks)
    _cuda.launch(
        "sum_partial", partial, sums.size, channels, chunks, width, factor, sums, threads=sums.size * width
    )
    return sums


def split(sets: int, length: int, channels: int) -> tuple[int, int, int]:
    """How blocks of THREADS threads share (sets, length, channels): channels side by side in a block, tiles of so
    many channels, chunks of rows. It depends on the shape alone, so that sums do, too."""
    width = 1 << min((channels - 1).bit_length(), 6)
    tiles = -(-channels // width)
    rows = THREADS // width
    chunks = max(1, min(BLOCKS // (sets * tiles), length // (rows * SHORTEST)))
    return width, tiles, chunks
