r"""Convolution on the GPU as a matrix product whose left matrix is never stored.

The patches of all output pixels would make the left matrix of a product (see patches.py), R S times as large as x.
Here its elements are looked up in x just when a block of threads copies its next piece to shared memory, which is
why the product is called implicit. Rows times columns, and what the sum runs over:

    forward           y  = patches of x  * w           N P Q   x  O/G        R S C/G
    data gradient     dx = patches of dy * w turned    N H W   x  C/G        the taps that fit, times O/G
    weight gradient   dw = (patches of x)^T * dy       R S C/G x  O/G        N P Q, split into parts

All three run through `multiply` in the kernel file: a block makes a tile of 128 x 64 numbers, a thread 8 x 4 of
them. A number that a thread reads from shared memory is used 4 or 8 times, one that the block reads from global
memory 64 or 128 times: with one multiplication for each read, memory would allow a hundredth of the speed.

The data gradient with a stride has a phase for each remainder of h and v, with taps of its own: no multiplication
by zero, and no two threads that write to one element. The transposed convolution of 2 x 2 with stride 2 is such a
gradient: four phases with a single tap each, which is its definition.

Any stride, dilation, padding and groups; float32 and float64. It is slow for groups of few channels, where most of
a tile is empty.

Cost: 2 N P Q O (C/G) R S FLOPs each, rounded up to whole tiles. Sources: Chetlur et al., "cuDNN: efficient
primitives for deep learning", 2014 (implicit product, patches built in shared memory); Volkov & Demmel,
"Benchmarking GPUs to tune dense linear algebra", SC 2008 (tiles in registers).
"""

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops.conv2d import gather
from tinyseg.ops.conv2d.gather import Axis
from tinyseg.ops.geometry import Window

ROWS, COLUMNS = 128, 64  # of a tile, as in the kernel file

_cuda = cuda.KernelFile(__file__, headers=["taps.cuh"], WIDTH=(4, 1))


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    return gather_product(x, w, b, gather.forward_axes(window), groups)


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    return gather_product(dy, turn(w, groups), b, gather.data_gradient_axes(window), groups)


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    x, dy = cuda.contiguous(x), cuda.contiguous(dy)
    images, in_group, out_group = len(x), x.shape[-1] // groups, dy.shape[-1] // groups
    shape = (*window.kernel, in_group, dy.shape[-1])
    length = window.kernel[0] * window.kernel[1] * in_group
    row_tiles, column_tiles = -(-length // ROWS), -(-out_group // COLUMNS)
    pixels = gather.pixel_count(images, *window.out)
    blocks = row_tiles * column_tiles * groups
    parts, part_pixels = gather.parts(pixels, blocks, length * dy.shape[-1], shortest=256)
    partial = cuda.empty((parts, *shape), x.dtype)
    rows, columns = (
        (axis.source, axis.out, axis.taps, axis.step, axis.origin, axis.spread)
        for axis in gather.forward_axes(window)
    )
    _cuda.launch(
        "weight_gradient",
        *(x, dy, partial, images, in_group, out_group, part_pixels, *rows, *columns),
        blocks=(row_tiles * parts, column_tiles, groups),
        WIDTH=_width(in_group),
    )
    return gather.sum_parts(partial)


def gather_product(source: Array, w: Array, b: Array | None, axes: tuple[Axis, Axis], groups: int) -> Array:
    """out[n, h, v, (g, o)] = b[(g, o)] + sum over the taps that (h, v) meets and over c of source * w.

    source: N H' W' (G C'), w: R S C' (G O'), b: (G O') or None.
    """
    source, w = cuda.contiguous(source), cuda.contiguous(w)
    bias = None if b is None else cuda.contiguous(b)
    rows, columns = axes
    images, in_group, out_group = len(source), w.shape[2], w.shape[3] // groups
    out = cuda.empty((images, rows.out, columns.out, w.shape[3]), source.dtype)
    pixel_tiles = -(-gather.pixel_count(images, rows.longest, columns.longest) // ROWS)
    blocks = pixel_tiles * rows.phases * columns.phases * -(-out_group // COLUMNS)
    _cuda.launch(
        "gather_product",
        *(source, w, bias, out, images, in_group, out_group, *rows, *columns),
        blocks=(blocks, groups),
        WIDTH=_width(in_group),
    )
    return out


def turn(w: Array, groups: int) -> Array:
    """w[r, s, c, (g, o)] as [r, s, o, (g, c)]: input and output channels change places inside each group."""
    w = cuda.contiguous(w)
    in_group, out_group = w.shape[2], w.shape[3] // groups
    turned = cuda.empty((*w.shape[:2], out_group, groups * in_group), w.dtype)
    _cuda.launch("turn", w, turned, groups, in_group, out_group, w.size, threads=w.size)
    return turned


def _width(in_group: int) -> int:
    """How many channels a thread may read at once: runs of four must not leave a tap or a 16-byte boundary."""
    return 4 if in_group % 4 == 0 else 1
