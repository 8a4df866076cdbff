r"""Convolution 3 x 3 with stride 1 on the GPU by Winograd's algorithm: 16 multiplications where 36 are usual.

Two neighbouring outputs of three taps take six products,

    y0 = d0 g0 + d1 g1 + d2 g2          y1 = d1 g0 + d2 g1 + d3 g2

Both have d1 and d2, and that saves two. With  a = d1 g1 + d2 (g0 + g2)  and  b = d2 g1 + d1 (g0 + g2),

    y0 = (d0 - d2) g0 + a               y1 = b - (d1 - d3) g2

and a and b take two products together, as half their sum and half their difference do:

    m0 = (d0 - d2) g0                   m1 = (d1 + d2) (g0 + g1 + g2) / 2
    m3 = (d1 - d3) g2                   m2 = (d2 - d1) (g0 - g1 + g2) / 2

    a = m1 + m2,   b = m1 - m2:         y0 = m0 + m1 + m2               y1 = m1 - m2 - m3

Written with matrices,  y = A^T [(G g) * (B^T d)],  where * multiplies element by element. Doing it along rows,
then along columns, gives tiles of 2 x 2 outputs from patches of 4 x 4:

    Y = A^T [(G g G^T) * (B^T d B)] A

All of this is linear in d and linear in m, so the sum over input channels can be taken of m. For each of the 16
elements that is an ordinary matrix product, tiles x C times C x O, and only these products cost much. The three
transformations take nothing but additions and halves, and rounding stays that of float32: products of sums of four
numbers, no large factors.

One kernel transforms the weights into a workspace, 16/9 of their size. Another does all the rest: patches are
transformed on their way through shared memory and results on their way out, so that neither is stored.

The gradient of the data is the same convolution, with the taps in reverse and the channels exchanged, and padding
2 - padding. That of the weights is left to the implicit product. No groups, no dilation; float32 and float64.

An infinity or NaN reaches all pixels of the tiles that look at it, as NaN: infinities are subtracted from each
other.

Cost: 2 N P Q O C 4 FLOPs instead of 2 N P Q O C 9, rounded up to blocks of 8 x 16 pixels and 64 channels (32 in
float64). Source: Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, eq. 7 (matrices)
and 8 (two dimensions); Winograd, "Arithmetic complexity of computations", SIAM 1980.
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.cuda import device
from tinyseg.ops.conv2d import gather, implicit_gemm, tensor_cores
from tinyseg.ops.conv2d.gather import Axis
from tinyseg.ops.geometry import Window

CAPABILITY = 80  # asynchronous copies
HEIGHT, WIDTH, DEPTH, PRODUCTS = 8, 16, 8, 16  # pixels of a block, channels of a slice: as in the kernel file
FIELD = (HEIGHT + 2) * (WIDTH + 2)

_cuda = cuda.KernelFile(__file__, headers=["taps.cuh"], WIDTH=(4, 1))


def unsuitable(dtype: np.dtype, w: Array, groups: int, window: Window | None = None) -> str | None:
    """Why this convolution cannot be calculated here; None if it can."""
    if cuda.capability() < CAPABILITY:
        return f"it needs a GPU of compute capability {CAPABILITY / 10}, this one has {cuda.capability() / 10}"
    if dtype.itemsize < 4:
        return f"it is for float32 and float64, not {dtype}"
    if groups != 1:
        return "it is for convolutions without groups"
    if window is None or (window.kernel, window.stride, window.dilation) != ((3, 3), (1, 1), (1, 1)):
        return "it is for kernels of 3 x 3 with stride 1 and dilation 1"
    shared = _shared(w.dtype.itemsize)
    if shared > device.current().shared_limit:
        return f"it takes {shared} bytes of shared memory, the GPU has {device.current().shared_limit}"
    return None


def fullness(w: Array, window: Window) -> float:
    """Which part of what blocks calculate is of use, forward or in the gradient of the data, where it is less."""
    (C, O), columns = w.shape[2:], _columns(w.dtype.itemsize)
    pixels = min(_part(h, HEIGHT) * _part(v, WIDTH) for h, v in (window.size, window.out))
    channels = min(_part(C, DEPTH) * _part(O, columns), _part(O, DEPTH) * _part(C, columns))
    return pixels * channels


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    return _product(x, w, b, gather.forward_axes(window), w.shape[3])


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    return _product(dy, w, b, gather.data_gradient_axes(window), w.shape[2])


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    possible = tensor_cores.unfit(x.dtype, x.shape[3], dy.shape[3]) is None
    return (tensor_cores if possible else implicit_gemm).weight_gradient(x, dy, window, groups)


def _product(source: Array, w: Array, b: Array | None, axes: tuple[Axis, Axis], out_channels: int) -> Array:
    """The convolution of the source, or with weights (3, 3, O, C) the gradient of the data."""
    source, w = cuda.contiguous(source), cuda.contiguous(w)
    bias = None if b is None else cuda.contiguous(b)
    images, channels, turned = len(source), source.shape[3], axes[0].spread < 0
    channel_tiles, slices = -(-out_channels // _columns(w.itemsize)), -(-channels // DEPTH)
    factors = (channel_tiles, slices * DEPTH, PRODUCTS, _columns(w.itemsize))
    transformed = cuda.empty(factors, w.dtype)
    threads = transformed.size // PRODUCTS
    width = {"WIDTH": cuda.pack_width(channels)}
    numbers = (channels, out_channels, turned, slices * DEPTH, threads)
    _cuda.launch("prepare_weights", w, transformed, *numbers, threads=threads, **width)

    rows, columns = axes
    gather.pixel_count(images, rows.source, columns.source)
    out = cuda.empty((images, rows.out, columns.out, out_channels), source.dtype)
    blocks = gather.pixel_count(images, -(-rows.out // HEIGHT), -(-columns.out // WIDTH)) * channel_tiles
    corners = [(axis.source, axis.out, axis.origin + min(0, 2 * axis.spread)) for axis in axes]
    _cuda.launch(
        "winograd_product",
        *(source, transformed, bias, out, channels, out_channels, *corners[0], *corners[1]),
        blocks=blocks,
        shared=_shared(w.itemsize),
        **width,
    )
    return out


def _columns(itemsize: int) -> int:
    """How many output channels a block makes."""
    return 256 // itemsize


def _part(length: int, step: int) -> float:
    return length / (-(-length // step) * step)


def _shared(itemsize: int) -> int:
    """Bytes: twice the pixels that a block looks at, and both kinds of matrices."""
    left, right = DEPTH * (PRODUCTS * 32 + 4), DEPTH * PRODUCTS * _columns(itemsize)
    return 2 * itemsize * (FIELD * DEPTH + left + right)
