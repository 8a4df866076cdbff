"""What the CUDA kernels of convolution share: the geometry that they are launched with, and how. See taps.cuh.

Along an axis, output element  h = phase + i * stride  meets tap r at the source element  i * step + offset(r):

    forward         source x    step = the convolution's stride    stride = 1
                    offset(r) = r * dilation - padding

    data gradient   source dy   step = 1    stride = the convolution's stride
                    offset(r) = (phase + padding - r * dilation) / stride,  for the r that make it whole
"""

from typing import NamedTuple

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops import sums
from tinyseg.ops.geometry import Window

ROWS, COLUMNS = 128, 64  # of the matrix product that a block calculates, in all kernel files


class Axis(NamedTuple):
    """One axis of a gather, in the order in which kernels take it."""

    source: int  # elements
    out: int
    taps: int
    step: int
    stride: int
    origin: int
    spread: int

    @property
    def phases(self) -> int:
        return min(self.stride, self.out)

    @property
    def longest(self) -> int:
        """How many elements phase 0 has, which has the most."""
        return -(-self.out // self.stride)


def forward_axes(window: Window) -> tuple[Axis, Axis]:
    """The rows and the columns of a convolution."""
    before = window.padding.top, window.padding.left
    rows, columns = (
        Axis(
            source=window.size[a],
            out=window.out[a],
            taps=window.kernel[a],
            step=window.stride[a],
            stride=1,
            origin=-before[a],
            spread=window.dilation[a],
        )
        for a in (0, 1)
    )
    return rows, columns


def data_gradient_axes(window: Window) -> tuple[Axis, Axis]:
    """The rows and the columns of its gradient in the data, which gathers from dy."""
    before = window.padding.top, window.padding.left
    rows, columns = (
        Axis(
            source=window.out[a],
            out=window.size[a],
            taps=window.kernel[a],
            step=1,
            stride=window.stride[a],
            origin=before[a],
            spread=-window.dilation[a],
        )
        for a in (0, 1)
    )
    return rows, columns


def pixel_count(images: int, height: int, width: int) -> int:
    """How many pixels there are; kernels number them in 32 bits, with room for the last tile."""
    count = images * height * width
    if count > 2**31 - 2**20:
        raise OverflowError(f"convolution on the GPU takes up to 2^31 pixels, got {count}; split the batch")
    return count


def parts(pixels: int, blocks: int, elements: int, *, shortest: int) -> tuple[int, int]:
    """How a sum over pixels is split: the number of parts, and the pixels of each.

    By the shape alone, so that the result has the same bits on every GPU: enough parts to keep a large GPU busy,
    which wants about 500 blocks, but no part of fewer than `shortest` pixels. Where the result has more than 2^22
    elements, each part has 500 blocks.

    blocks: that work on each part. elements: of the result.
    """
    count = max(1, min(-(-512 // blocks), pixels // shortest)) if elements < 2**22 else 1
    length = -(-pixels // count)
    length = -(-length // 32) * 32  # whole slices of every kernel
    return -(-pixels // length), length


def sum_parts(partial: Array) -> Array:
    """The sum over the first axis of an array (parts, ...), in a fixed order."""
    parts, *shape = partial.shape
    if parts == 1:
        return partial.reshape(shape)
    return sums.over_middle(partial, 1, parts, partial.size // parts).reshape(shape)


# ------------------------------------------------------------------------------------------------------ launchers
# Two files have kernels of these names, with the same arguments: implicit_gemm.cu and tensor_cores.cu.


def product(
    kernels: cuda.KernelFile,
    source: Array,
    w: Array,
    b: Array | None,
    axes: tuple[Axis, Axis],
    groups: int,
    **settings: int,
) -> Array:
    """out[n, h, v, (g, o)] = b[(g, o)] + sum over the taps that (h, v) meets and over c of source * w.

    source: N H' W' (G C'), w: R S C' (G O'), b: (G O') or None. settings: of the launch.
    """
    source, w = cuda.contiguous(source), cuda.contiguous(w)
    bias = None if b is None else cuda.contiguous(b)
    rows, columns = axes
    images, in_group, out_group = len(source), w.shape[2], w.shape[3] // groups
    out = cuda.empty((images, rows.out, columns.out, w.shape[3]), source.dtype)
    pixel_tiles = -(-pixel_count(images, rows.longest, columns.longest) // ROWS)
    blocks = pixel_tiles * rows.phases * columns.phases * -(-out_group // COLUMNS)
    arguments = (source, w, bias, out, images, in_group, out_group, *rows, *columns)
    kernels.launch("gather_product", *arguments, blocks=(blocks, groups), **settings)
    return out


def weight_gradient(
    kernels: cuda.KernelFile, x: Array, dy: Array, window: Window, groups: int, **settings: int
) -> Array:
    """dw[r, s, c, (g, o)] = sum over n, p, q of x[n, h, v, (g, c)] * dy[n, p, q, (g, o)].

    settings: of the launch.
    """
    x, dy = cuda.contiguous(x), cuda.contiguous(dy)
    images, in_group, out_group = len(x), x.shape[3] // groups, dy.shape[3] // groups
    length = window.kernel[0] * window.kernel[1] * in_group
    row_tiles, column_tiles = -(-length // ROWS), -(-out_group // COLUMNS)
    pixels = pixel_count(images, *window.out)
    count, part_pixels = parts(pixels, row_tiles * column_tiles * groups, length * dy.shape[3], shortest=256)
    partial = cuda.empty((count, *window.kernel, in_group, dy.shape[3]), cuda.real(x.dtype))
    arguments = (x, dy, partial, images, in_group, out_group, part_pixels, *weight_gradient_axes(window))
    kernels.launch("weight_gradient", *arguments, blocks=(row_tiles * count, column_tiles, groups), **settings)
    return sum_parts(partial)


def weight_gradient_axes(window: Window) -> tuple[int, ...]:
    """Both axes for kernels that walk over output pixels: `forward_axes` without the stride, which is 1."""
    return tuple(
        number
        for axis in forward_axes(window)
        for number in (axis.source, axis.out, axis.taps, axis.step, axis.origin, axis.spread)
    )
