"""All parameters in one launch: a table of where their arrays lie on the GPU.

A row stands for one parameter. It tells how many elements it has, and where its arrays begin: its values, its
gradient, what the optimiser keeps for it. Blocks of threads share the elements of all rows in pieces of equal
length (`rows.cuh`), so an update takes one launch however many parameters there are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array

PIECE = 4096  # elements for a block
ARRAYS = 4  # that a row has room for


class Rows(NamedTuple):
    table: Array  # int64 (n, 2 + ARRAYS): the row's first piece, its elements, the addresses of its arrays
    count: int
    pieces: int
    arrays: list[list[Array]]  # at these addresses: they must not go before the launch


def rows(arrays: Sequence[Sequence[Array]]) -> Rows:
    """A table of rows of arrays on the GPU. The arrays of a row have one size, and all arrays one type.

    An array that is not contiguous is copied: kernels may only write to contiguous ones.
    """
    kept = [[cuda.contiguous(array) for array in row] for row in arrays]
    types = sorted({array.dtype.name for row in kept for array in row})
    if len(types) > 1:
        raise TypeError(
            f"parameters that are changed together on a GPU must be of one type, got {' and '.join(types)}; "
            "convert the network with astype before the optimiser is made"
        )
    table = np.zeros((len(kept), 2 + ARRAYS), np.int64)
    sizes = np.array([row[0].size for row in kept])
    pieces = -(-sizes // PIECE)
    table[:, 0] = np.cumsum(pieces) - pieces
    table[:, 1] = sizes
    for line, row in zip(table, kept, strict=True):
        line[2 : 2 + len(row)] = [cuda.address(array) for array in row]
    return Rows(cuda.to_device(table), len(kept), int(pieces.sum()), kept)
