"""Convolution as plain nested loops: no patches, no matrix product.

The innermost loop runs over output channels, which lie side by side in memory, so that the compiler turns it into
vector instructions. It does the arithmetic of the definition and nothing else, which wins where a matrix product
has too little to do: depthwise convolution, where each channel has a kernel of its own (C/G = O/G = 1), and many
small groups. Every output element is written by one thread; the gradient in x gathers the outputs that saw it.

Cost: 2 N P Q O (C/G) R S FLOPs a pass. Depthwise, that is 2 R S FLOPs for each 4 bytes: memory decides.
"""

import numpy as np

from tinyseg.backend import Array, kernel, prange
from tinyseg.ops.geometry import Window


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    bias = np.zeros(w.shape[-1], x.dtype) if b is None else np.ascontiguousarray(b)
    y = np.empty((len(x), *window.out, w.shape[-1]), x.dtype)
    _forward_kernel(x, w, bias, window.stride, window.dilation, _origin(window), groups, y)
    return y


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    dy, w = np.ascontiguousarray(dy), np.ascontiguousarray(w)
    channels = w.shape[2] * groups
    bias = np.zeros(channels, dy.dtype) if b is None else np.ascontiguousarray(b)
    dx = np.empty((len(dy), *window.size, channels), dy.dtype)
    _data_gradient_kernel(dy, w, bias, window.stride, window.dilation, _origin(window), groups, dx)
    return dx


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    w_shape = (*window.kernel, x.shape[-1] // groups, dy.shape[-1])
    parts = min(16, len(dy) * window.out[0])  # rows of dy are summed in parts, one after the other inside a part
    partial = np.zeros((parts, *w_shape), x.dtype)
    _weight_gradient_kernel(x, dy, window.stride, window.dilation, _origin(window), groups, partial)
    return partial.sum(axis=0)


def _origin(window: Window) -> tuple[int, int]:
    """The input element under tap (0, 0) of output element (0, 0)."""
    return -window.padding.top, -window.padding.left


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _forward_kernel(x, w, bias, stride, dilation, origin, groups, y):
    images, height, width, _ = x.shape
    tap_rows, tap_columns, in_group, out_channels = w.shape
    out_group = out_channels // groups
    _, out_height, out_width, _ = y.shape
    for line in prange(images * out_height):
        n, p = divmod(np.int64(line), out_height)
        for q in range(out_width):
            for o in range(out_channels):
                y[n, p, q, o] = bias[o]
            for r in range(tap_rows):
                h = origin[0] + p * stride[0] + r * dilation[0]
                if h < 0 or h >= height:
                    continue
                for s in range(tap_columns):
                    v = origin[1] + q * stride[1] + s * dilation[1]
                    if v < 0 or v >= width:
                        continue
                    if in_group == 1 and out_group == 1:
                        for o in range(out_channels):
                            y[n, p, q, o] += x[n, h, v, o] * w[r, s, 0, o]
                    else:
                        for g in range(groups):
                            for c in range(in_group):
                                value = x[n, h, v, g * in_group + c]
                                for o in range(g * out_group, (g + 1) * out_group):
                                    y[n, p, q, o] += value * w[r, s, c, o]


@kernel
def _data_gradient_kernel(dy, w, bias, stride, dilation, origin, groups, dx):
    images, out_height, out_width, _ = dy.shape
    tap_rows, tap_columns, in_group, out_channels = w.shape
    out_group = out_channels // groups
    _, height, width, channels = dx.shape
    for line in prange(images * height):
        n, h = divmod(np.int64(line), height)
        for v in range(width):
            for c in range(channels):
                dx[n, h, v, c] = bias[c]
            for r in range(tap_rows):
                p, between_rows = divmod(h - origin[0] - r * dilation[0], stride[0])
                if between_rows != 0 or p < 0 or p >= out_height:
                    continue
                for s in range(tap_columns):
                    q, between_columns = divmod(v - origin[1] - s * dilation[1], stride[1])
                    if between_columns != 0 or q < 0 or q >= out_width:
                        continue
                    if in_group == 1 and out_group == 1:
                        for c in range(channels):
                            dx[n, h, v, c] += dy[n, p, q, c] * w[r, s, 0, c]
                    else:
                        for g in range(groups):
                            for c in range(in_group):
                                total = dx[n, h, v, g * in_group + c]
                                for o in range(g * out_group, (g + 1) * out_group):
                                    total += dy[n, p, q, o] * w[r, s, c, o]
                                dx[n, h, v, g * in_group + c] = total


@kernel
def _weight_gradient_kernel(x, dy, stride, dilation, origin, groups, partial):
    _, height, width, _ = x.shape
    images, out_height, out_width, out_channels = dy.shape
    parts, tap_rows, tap_columns, in_group, _ = partial.shape
    out_group = out_channels // groups
    lines = images * out_height
    for part in prange(parts):
        for line in range(part * lines // parts, (part + 1) * lines // parts):
            n, p = divmod(np.int64(line), out_height)
            for r in range(tap_rows):
                h = origin[0] + p * stride[0] + r * dilation[0]
                if h < 0 or h >= height:
                    continue
                for s in range(tap_columns):
                    for q in range(out_width):
                        v = origin[1] + q * stride[1] + s * dilation[1]
                        if v < 0 or v >= width:
                            continue
                        if in_group == 1 and out_group == 1:
                            for o in range(out_channels):
                                partial[part, r, s, 0, o] += x[n, h, v, o] * dy[n, p, q, o]
                        else:
                            for g in range(groups):
                                for c in range(in_group):
                                    value = x[n, h, v, g * in_group + c]
                                    for o in range(g * out_group, (g + 1) * out_group):
                                        partial[part, r, s, c, o] += value * dy[n, p, q, o]
