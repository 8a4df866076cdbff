"""Convolution as it is defined: a loop over the taps of the kernel, and a sum over channels for each tap.

This is the truth that the fast algorithms are compared with. The padded input is called `xp`; tap (r, s) sees the
part of it that starts at (r * dilation, s * dilation) and steps by the stride. Channels are split into groups:
c counts inside a group of the input, o inside a group of the output.
"""

from collections.abc import Iterator

import numpy as np

from tinyseg.backend import Array
from tinyseg.ops.geometry import Window


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    xp = _split_channels(_pad(x, window), groups)  # N H' W' G C/G
    w = _split_channels(w, groups)  # R S C/G G O/G
    y = np.zeros((len(x), *window.out, groups, w.shape[-1]), x.dtype)
    for (r, s), seen in _taps(window):
        y += np.einsum("npqgc,cgo->npqgo", xp[seen], w[r, s])
    y = _merge_groups(y)
    return y if b is None else y + b


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    """The adjoint of `forward` in x. With a bias it is the forward pass of the transposed convolution."""
    dy = _split_channels(dy, groups)
    w = _split_channels(w, groups)
    pad = window.padding
    height = window.size[0] + pad.top + pad.bottom
    width = window.size[1] + pad.left + pad.right
    dxp = np.zeros((len(dy), height, width, groups, w.shape[2]), dy.dtype)
    for (r, s), seen in _taps(window):
        dxp[seen] += np.einsum("npqgo,cgo->npqgc", dy, w[r, s])
    dx = dxp[:, pad.top : height - pad.bottom, pad.left : width - pad.right]
    dx = _merge_groups(dx)
    return dx if b is None else dx + b


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    """The adjoint of `forward` in w."""
    xp = _split_channels(_pad(x, window), groups)
    dy = _split_channels(dy, groups)
    dw = np.zeros((*window.kernel, xp.shape[-1], groups, dy.shape[-1]), x.dtype)
    for (r, s), seen in _taps(window):
        dw[r, s] = np.einsum("npqgc,npqgo->cgo", xp[seen], dy)
    return _merge_groups(dw)


def _taps(window: Window) -> Iterator[tuple[tuple[int, int], tuple[slice, ...]]]:
    """Each tap (r, s) of the kernel with the part of the padded input that it sees."""
    rows_seen, columns_seen = (
        [slice(i * dilation, i * dilation + (out - 1) * stride + 1, stride) for i in range(kernel)]
        for kernel, stride, dilation, out in zip(
            window.kernel, window.stride, window.dilation, window.out, strict=True
        )
    )
    for r, rows in enumerate(rows_seen):
        for s, columns in enumerate(columns_seen):
            yield (r, s), (slice(None), rows, columns)


def _pad(x: Array, window: Window) -> Array:
    pad = window.padding
    return np.pad(x, ((0, 0), (pad.top, pad.bottom), (pad.left, pad.right), (0, 0)))


def _split_channels(array: Array, groups: int) -> Array:
    """(..., G * K) to (..., G, K)."""
    return array.reshape(*array.shape[:-1], groups, array.shape[-1] // groups)


def _merge_groups(array: Array) -> Array:
    """(..., G, K) to (..., G * K)."""
    return np.ascontiguousarray(array).reshape(*array.shape[:-2], -1)
