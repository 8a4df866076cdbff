"""Depthwise convolution on the GPU: as many groups as channels, so that every channel has kernels of its own.

    y[n, p, q, o] = b[o] + sum over r, s of  x[n, h, v, o / M] * w[r, s, 0, o]        M = O / C, mostly 1

Nothing is summed over channels, and a matrix product would be empty but for a stripe. What costs time is memory:
2 R S FLOPs for an element of x and one of y, 18 for 8 bytes with a kernel of 3 x 3. A thread makes four output
pixels side by side for four channels (one where C is not a multiple of 4 or M is not 1). It reads x R S times, but
from the cache: the threads around it read the same.

The gradient of the data is the same gather, by phases (see gather.py). For the gradient of the weights a thread
keeps nine taps' sums in registers and walks over pixels; the threads of a block are added up through shared
memory, and blocks by a second kernel, in a fixed order.

Cost: 2 N P Q O R S FLOPs each. Source: Howard et al., "MobileNets", 2017; Chollet, "Xception", CVPR 2017.
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops.conv2d import gather
from tinyseg.ops.conv2d.gather import Axis
from tinyseg.ops.geometry import Window

STRIP, TAPS = 4, 9  # as in the kernel file

_cuda = cuda.KernelFile(__file__, headers=["taps.cuh"], scalars=cuda.WITH_BFLOAT16, WIDTH=(4, 1))


def unsuitable(dtype: np.dtype, w: Array, groups: int, window: Window | None = None) -> str | None:
    """Why weights (R, S, C/G, O) cannot be convolved with here; None if they can."""
    return None if w.shape[2] == 1 else f"it takes groups of one channel, not of {w.shape[2]}"


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    copies = w.shape[3] // groups
    return _product(x, w, b, gather.forward_axes(window), w.shape[3], copies, 1)


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    terms = w.shape[3] // groups
    return _product(dy, w, b, gather.data_gradient_axes(window), groups, 1, terms)


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    x, dy = cuda.contiguous(x), cuda.contiguous(dy)
    channels = dy.shape[3]
    copies, taps = channels // groups, window.kernel[0] * window.kernel[1]
    per_thread = _width(channels, copies, 1)
    width = cuda.lanes(-(-channels // per_thread))
    runs, tap_runs = -(-channels // (width * per_thread)), -(-taps // TAPS)
    pixels = gather.pixel_count(len(x), *window.out)
    parts, part_pixels = gather.parts(pixels, runs * tap_runs, taps * channels, shortest=16 * 256 // width)
    partial = cuda.empty((parts, *window.kernel, 1, channels), cuda.real(x.dtype))
    arguments = (x, dy, partial, len(x), channels, copies, width, part_pixels)
    _cuda.launch(
        "depthwise_weight_gradient",
        *(*arguments, *gather.weight_gradient_axes(window)),
        blocks=(parts, runs, tap_runs),
        WIDTH=per_thread,
    )
    return gather.sum_parts(partial)


def _product(
    source: Array, w: Array, b: Array | None, axes: tuple[Axis, Axis], channels: int, copies: int, terms: int
) -> Array:
    source, w = cuda.contiguous(source), cuda.contiguous(w)
    bias = None if b is None else cuda.contiguous(b)
    rows, columns = axes
    out = cuda.empty((len(source), rows.out, columns.out, channels), source.dtype)
    width = _width(channels, copies, terms)
    strips = gather.pixel_count(len(source), rows.longest, -(-columns.longest // STRIP))
    blocks = -(-strips * (channels // width) // 256)
    _cuda.launch(
        "depthwise_product",
        *(source, w, bias, out, len(source), channels, copies, terms, *rows, *columns),
        blocks=(blocks, rows.phases * columns.phases),
        WIDTH=width,
    )
    return out


def _width(channels: int, copies: int, terms: int) -> int:
    return 4 if channels % 4 == 0 and copies == terms == 1 else 1
