"""Small things that the CRF does with arrays on the CPU and on a GPU alike, beside the operators of `ops`."""

import numpy as np

from tinyseg import cuda, ops
from tinyseg.backend import Array
from tinyseg.ops import sums

_cuda = cuda.KernelFile(__file__)

RANGE_BLOCKS = 128  # of 8 warps, for each column, at most


def here(array: Array, like: Array, dtype: np.dtype | None = None) -> Array:
    """A small array from the CPU, or from where `like` is, now there; in a type, by default that of `like`."""
    dtype = like.dtype if dtype is None else dtype
    if cuda.on_gpu(array):
        return cuda.contiguous(array, dtype)
    array = np.asarray(array, dtype)
    return cuda.constant(array) if cuda.on_gpu(like) else array


def ones(rows: int, dtype: type, *, on_gpu: bool) -> Array:
    """(rows, 1), on the GPU or on the CPU."""
    if not on_gpu:
        return np.ones((rows, 1), dtype)
    y = cuda.empty((rows, 1), np.dtype(dtype))
    _cuda.launch("fill", 1, y, rows, threads=cuda.quads(rows))
    return y


def inverse(norm: Array, tiny: float, *, root: bool) -> Array:
    """1 / (norm + tiny), or the square root of it."""
    if not cuda.on_gpu(norm):
        result = 1 / (norm + norm.dtype.type(tiny))
        return np.sqrt(result) if root else result
    y = cuda.empty(norm.shape, norm.dtype)
    _cuda.launch("inverse_norm", cuda.contiguous(norm), tiny, root, y, norm.size, threads=cuda.quads(norm.size))
    return y


def logarithm(x: Array, smallest: float, *, factor: float = 1) -> Array:
    """factor * log(max(x, smallest))."""
    if not cuda.on_gpu(x):
        return x.dtype.type(factor) * np.log(np.maximum(x, x.dtype.type(smallest)))
    y = cuda.empty(x.shape, x.dtype)
    _cuda.launch("logarithm", cuda.contiguous(x), smallest, factor, y, x.size, threads=cuda.quads(x.size))
    return y


def ranges(x: Array) -> tuple[Array, Array]:
    """The smallest and the largest number of each column of x (N, d), float64 (d,) on the CPU; NaN if one is NaN.

    The host waits for the GPU.
    """
    if not cuda.on_gpu(x):
        low = np.array([column.min() for column in x.T], np.float64)
        return low, np.array([column.max() for column in x.T], np.float64)
    rows, columns = x.shape
    blocks = min(RANGE_BLOCKS, -(-rows // 256))
    found = cuda.empty((2, columns, 8 * blocks), np.dtype(np.float64))
    _cuda.launch("column_ranges", cuda.contiguous(x), rows, columns, found, blocks=(blocks, columns))
    high, low = cuda.to_host(found).max(axis=2)
    return -low, high


def negative(x: Array) -> Array:
    return ops.mul(x, here(np.asarray(-1), x))[0]


def row_products(a: Array, b: Array) -> Array:
    """a_i . b_i for each row i, (N, L) and (N, L) -> (N, 1)."""
    products = ops.mul(a, b)[0]
    if cuda.on_gpu(a):
        return sums.over_middle(products, a.shape[0], a.shape[1], 1)
    return products.sum(axis=1, keepdims=True)


def total(x: Array) -> float:
    """The sum of all elements, on the CPU. The host waits for the GPU."""
    if cuda.on_gpu(x):
        return float(cuda.to_host(sums.over_middle(x, 1, x.size, 1))[0, 0])
    return float(x.sum(dtype=np.float64))
