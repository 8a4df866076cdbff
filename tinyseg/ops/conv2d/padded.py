"""Convolution on tensor cores where one side has channels that they do not take: 3 of an image, 21 of classes.

Their kernels copy runs of 16 bytes, so channels must come in fours (eights of bfloat16). A result of other numbers
of channels can be cut out of a larger one: the weights get columns of zeros, and the bias. A column of a product
knows nothing of the others, so that what is in the additional ones, NaN where an infinity meets a zero, is cut off
with them.

    forward           y  of O channels     w and b get columns, y is cut
    data gradient     dx of C channels     w and b likewise, dx is cut
    weight gradient   dw for O channels    dy gets columns, dw is cut

The other three have these channels on the other side: where y is cut, dx is a sum over dy's; where dx is cut, y is
a sum over x's, and dw has few rows. implicit_gemm.py does those, which sums over any number of channels without
copying what it reads. algorithms.py says when padding wins.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops.concat import SliceCache, slice_backward
from tinyseg.ops.conv2d import implicit_gemm, tensor_cores
from tinyseg.ops.geometry import Window


class Padded(NamedTuple):
    """An algorithm as the modules are. It is for a single group."""

    product: ModuleType  # halo_tiles or tensor_cores

    def forward(self, x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
        if not is_whole(x.dtype, w.shape[2]):
            return implicit_gemm.forward(x, w, b, window, groups)
        channels = whole(x.dtype, w.shape[3])
        y = self.product.forward(x, _widened(w, 3, channels), _widened_bias(b, channels), window, groups)
        return _cut(y, w.shape[3])

    def data_gradient(self, dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
        if not is_whole(dy.dtype, w.shape[3]):
            return implicit_gemm.data_gradient(dy, w, b, window, groups)
        channels = whole(dy.dtype, w.shape[2])
        dx = self.product.data_gradient(dy, _widened(w, 2, channels), _widened_bias(b, channels), window, groups)
        return _cut(dx, w.shape[2])

    def weight_gradient(self, x: Array, dy: Array, window: Window, groups: int) -> Array:
        if not is_whole(x.dtype, x.shape[3]):
            return implicit_gemm.weight_gradient(x, dy, window, groups)
        widened = _widened(dy, 3, whole(dy.dtype, dy.shape[3]))
        return _cut(tensor_cores.weight_gradient(x, widened, window, groups), dy.shape[3])


def whole(dtype: np.dtype, channels: int) -> int:
    """So many channels in runs of 16 bytes, the last one filled up."""
    run = 16 // dtype.itemsize
    return -(-channels // run) * run


def is_whole(dtype: np.dtype, channels: int) -> bool:
    """Whether that adds none."""
    return whole(dtype, channels) == channels


def _widened(array: Array, axis: int, length: int) -> Array:
    """The array with zeros at the end of an axis."""
    shape = (*array.shape[:axis], length, *array.shape[axis + 1 :])
    cache = SliceCache(shape, array.dtype, (0,) * array.ndim, array.shape)
    return slice_backward(array, cache)


def _widened_bias(b: Array | None, channels: int) -> Array | None:
    return None if b is None else _widened(b, 0, channels)


def _cut(array: Array, channels: int) -> Array:
    return cuda.contiguous(array[..., :channels])
