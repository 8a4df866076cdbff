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

Any stride, dilation, padding and groups; float32 and float64, and arrays of bfloat16. It is slow for groups of few
channels, where most of a tile is empty.

Cost: 2 N P Q O (C/G) R S FLOPs each, rounded up to whole tiles. Sources: Chetlur et al., "cuDNN: efficient
primitives for deep learning", 2014 (implicit product, patches built in shared memory); Volkov & Demmel,
"Benchmarking GPUs to tune dense linear algebra", SC 2008 (tiles in registers).
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops.conv2d import gather
from tinyseg.ops.geometry import Window

TURNED = 32  # rows and columns of the squares in which weights are turned: as in the kernel file

_cuda = cuda.KernelFile(__file__, headers=["taps.cuh", "tiles.cuh"], scalars=cuda.WITH_BFLOAT16, WIDTH=(4, 1))


def unsuitable(dtype: np.dtype, w: Array, groups: int, window: Window | None = None) -> str | None:
    """Nothing is."""
    return None


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    axes = gather.forward_axes(window)
    return gather.product(_cuda, x, w, b, axes, groups, WIDTH=_width(w.shape[2]))


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    axes = gather.data_gradient_axes(window)
    return gather.product(_cuda, dy, turn(w, groups, w.dtype), b, axes, groups, WIDTH=_width(w.shape[3] // groups))


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    return gather.weight_gradient(_cuda, x, dy, window, groups, WIDTH=_width(x.shape[3] // groups))


def turn(w: Array, groups: int, dtype: np.dtype) -> Array:
    """w[r, s, c, (g, o)] as [r, s, o, (g, c)]: input and output channels change places inside each group.

    dtype: its own, or bfloat16.
    """
    w = cuda.contiguous(w)
    in_group, out_group = w.shape[2], w.shape[3] // groups
    turned = cuda.empty((*w.shape[:2], out_group, groups * in_group), dtype)
    blocks = w.shape[0] * w.shape[1] * groups * -(-in_group // TURNED) * -(-out_group // TURNED)
    _cuda.launch("turn", w, turned, groups, in_group, out_group, blocks=blocks)
    return turned


def _width(in_group: int) -> int:
    """How many channels a thread may read at once: runs of four must not leave a tap or a 16-byte boundary."""
    return 4 if in_group % 4 == 0 else 1
