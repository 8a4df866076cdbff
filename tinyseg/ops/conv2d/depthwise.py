"""Depthwise convolution on the GPU: as many groups as channels, so that every channel has kernels of its own.

    y[n, p, q, o] = b[o] + sum over r, s of  x[n, h, v, o / M] * w[r, s, 0, o]        M = O / C, mostly 1

Nothing is summed over channels, and a matrix product would be empty but for a stripe. What costs time is memory:
2 R S FLOPs for an element of x and one of y, 18 for 8 bytes with a kernel of 3 x 3. A thread makes four output
pixels side by side for as many channels as 16 bytes hold (four of bfloat16; one channel where C is not a multiple
of them or M is not 1). It reads x R S times, but from the cache: the threads around it read the same.

The gradient of the data is the same gather, by phases (see gather.py). For the gradient of the weights a thread
keeps nine taps' sums in registers and walks over pixels; the threads of a block are added up through shared
memory, and blocks by a second kernel, in a fixed order.

Kernels of 3 x 3 with stride 1 and M = 1, dilated or not, are what networks are made of. There the instructions
around each tap would take longer than memory does, so they have kernels of their own, in which all loops have
fixed lengths. A thread takes a strip, four output pixels below each other, `dilation` rows apart. The nine
weights, or the sums for their gradients, are in its registers, and it reads each of the six source rows once,
in three columns: 18 reads in place of 36. The gradient of the data is the same kernel with the taps in the
opposite order.

Cost: 2 N P Q O R S FLOPs each. Source: Howard et al., "MobileNets", 2017; Chollet, "Xception", CVPR 2017.
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.cuda.kernels import GRID_LIMIT
from tinyseg.ops.conv2d import gather
from tinyseg.ops.conv2d.gather import Axis
from tinyseg.ops.geometry import Window

STRIP, TAPS, TALL = 4, 9, 4  # as in the kernel file
LIMIT = GRID_LIMIT[1]  # of blocks along y and z

_cuda = cuda.KernelFile(
    __file__,
    headers=["taps.cuh"],
    scalars=cuda.WITH_BFLOAT16,
    unused=[
        {"SCALAR": scalar, "WIDTH": width} for scalar, width in (("float", 2), ("double", 4), ("bfloat16", 2))
    ],
    WIDTH=(4, 2, 1),
)


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
    per_thread = _width(x.dtype, channels, copies)
    width = cuda.lanes(-(-channels // per_thread))
    runs, tap_runs = -(-channels // (width * per_thread)), -(-taps // TAPS)
    axes = gather.forward_axes(window)
    is_3x3 = copies == 1 and _is_3x3(axes, len(x), channels)
    lines = _strips(axes[0]) if is_3x3 else window.out[0]
    spots = gather.pixel_count(len(x), lines, window.out[1])  # strips, or pixels
    shortest = (4 if is_3x3 else 16) * 256 // width
    parts, length = gather.parts(spots, runs * tap_runs, taps * channels, shortest=shortest)
    partial = cuda.empty((parts, *window.kernel, 1, channels), cuda.real(x.dtype))
    blocks = parts, runs, tap_runs
    if is_3x3:
        arguments = (x, dy, partial, len(x), channels, width, lines, length, *_ends(axes))
        _cuda.launch("depthwise_3x3_weight_gradient", *arguments, blocks=blocks, WIDTH=per_thread)
    else:
        geometry = gather.weight_gradient_axes(window)
        arguments = (x, dy, partial, len(x), channels, copies, width, length, *geometry)
        _cuda.launch("depthwise_weight_gradient", *arguments, blocks=blocks, WIDTH=per_thread)
    return gather.sum_parts(partial)


def _product(
    source: Array, w: Array, b: Array | None, axes: tuple[Axis, Axis], channels: int, copies: int, terms: int
) -> Array:
    source, w = cuda.contiguous(source), cuda.contiguous(w)
    bias = None if b is None else cuda.contiguous(b)
    images, (rows, columns) = len(source), axes
    out = cuda.empty((images, rows.out, columns.out, channels), source.dtype)
    per_thread = _width(source.dtype, channels, copies * terms)
    packs = channels // per_thread
    if copies == terms == 1 and _is_3x3(axes, images, channels):
        width = min(cuda.lanes(packs), 128 // (per_thread * source.itemsize))  # 128 bytes, a line of the cache
        runs = -(-packs // width)
        arguments = (source, w, bias, out, channels, width, runs, rows.spread < 0, *_ends(axes))
        blocks = (-(-columns.out * width // 256) * runs, _strips(rows), images)
        _cuda.launch("depthwise_3x3", *arguments, blocks=blocks, WIDTH=per_thread)
    else:
        strips = gather.pixel_count(images, rows.longest, -(-columns.longest // STRIP))
        arguments = (source, w, bias, out, images, channels, copies, terms, *rows, *columns)
        blocks = (-(-strips * packs // 256), rows.phases * columns.phases)
        _cuda.launch("depthwise_product", *arguments, blocks=blocks, WIDTH=per_thread)
    return out


def _width(dtype: np.dtype, channels: int, copies: int) -> int:
    """How many channels a thread takes."""
    width = 2 if dtype == np.float64 else 4
    return width if channels % width == 0 and copies == 1 else 1


# ---------------------------------------------------------------------------- kernels of 3 x 3 with stride 1


def _is_3x3(axes: tuple[Axis, Axis], images: int, channels: int) -> bool:
    """Whether the kernels for 3 x 3 take it: they count the elements from one row of a strip to the next, and from
    one tap to the next, in 32 bits, and have a block for each strip of each image."""
    rows, columns = axes
    row = max(columns.source, columns.out) * channels
    furthest = max(abs(rows.spread) * row, abs(columns.spread) * channels)
    return (
        all(axis.taps == 3 and axis.step == axis.stride == 1 for axis in axes)
        and max(images, _strips(rows)) <= LIMIT
        and furthest < 2**28
    )


def _strips(rows: Axis) -> int:
    """How many strips an image has: runs of TALL rows, for each of the phases of a dilated kernel."""
    dilation = abs(rows.spread)
    return min(dilation, rows.out) * -(-rows.out // (dilation * TALL))


def _ends(axes: tuple[Axis, Axis]) -> tuple[int, ...]:
    """Both axes for these kernels: source, out, origin and spread. In the gradient of the data the taps go
    backwards, and the last one is the origin."""
    return tuple(
        number
        for axis in axes
        for number in (axis.source, axis.out, axis.origin + min(0, 2 * axis.spread), abs(axis.spread))
    )
