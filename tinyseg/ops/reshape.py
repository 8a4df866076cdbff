r"""The same elements, in the same order, in another shape: what stands between a map and a fully connected layer.

    y[j] = x[i]    where i and j have the same position when all elements are counted, the last axis fastest

A map (N, H, W, C) flattened to (N, H W C) therefore counts rows, columns, then channels.

Backward. Each element goes back to where it was: dx = dy in the shape of x. Nothing is computed; memory is moved
only if the array was not contiguous.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops import checks


class ReshapeCache(NamedTuple):
    shape: tuple[int, ...]  # of x
    y_shape: tuple[int, ...]
    dtype: np.dtype


def reshape(x: Array, shape: Sequence[int]) -> tuple[Array, ReshapeCache]:
    """x in the given shape. One length may be -1: it becomes what is left for it.

    >>> reshape(np.array([[1.0, 2.0], [3.0, 4.0]]), (1, -1))[0]
    array([[1., 2., 3., 4.]])
    """
    checks.floating("reshape", x=x)
    wanted = tuple(shape)
    known = int(np.prod([length for length in wanted if length != -1], dtype=np.int64))
    fits = x.size % known == 0 if wanted.count(-1) == 1 and known > 0 else known == x.size
    if not fits or wanted.count(-1) > 1 or min(wanted, default=1) < -1:
        raise ValueError(
            f"reshape: {x.size} elements in the shape {x.shape} do not fit the shape {wanted}; the product of "
            "both must be equal, and at most one length may be -1"
        )
    y = cuda.reshape(x, wanted)
    return y, ReshapeCache(x.shape, y.shape, x.dtype)


def reshape_backward(dy: Array, cache: ReshapeCache) -> Array:
    """The gradient with respect to `x`."""
    checks.upstream("reshape_backward", dy, cache.y_shape, cache.dtype)
    return cuda.reshape(dy, cache.shape)
