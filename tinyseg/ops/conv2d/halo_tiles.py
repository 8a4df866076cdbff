"""Convolution 3 x 3 with stride 1 on tensor cores, from patches of the image with their halo in shared memory.

The implicit product of tensor_cores.py copies every element of x nine times, once for each tap. Its blocks of
128 x 64 numbers get 128 * 64 / (128 + 64) = 43 multiplications out of each number that they copy. For plain TF32
that is too few, going by the rates on paper: copying from the second-level cache takes longer than multiplying.

Here a block makes 16 x 16 pixels of 64 channels. It copies the 18 x 18 pixels that their taps reach, 16 channels
at a time (32 of bfloat16), with the weights of all nine taps, and gets 256 * 64 * 9 / (18 * 18 + 9 * 64) = 164
multiplications out of each number. The taps then read the patch from where each of them looks. Where few output
channels would leave most of a block empty, it makes 16: dense blocks append 12 or 16 channels at a time.

It needs 115 KB of shared memory, or 125 KB with dilation 2. Edges of the image that are no multiple of 16 leave
part of a tile empty; small images are better left to the implicit product. The gradient of the data is the same
with the taps in reverse; that of the weights is tensor_cores.py's.

Cost: 2 N P Q O (C/G) 9 FLOPs, or three times as many. Source: the split and the layout as in tensor_cores.py.
"""

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.cuda import device
from tinyseg.ops.conv2d import gather, implicit_gemm, tensor_cores
from tinyseg.ops.conv2d.gather import Axis
from tinyseg.ops.geometry import Window

SIDE, BYTES = 16, 64  # of a pixel's channels at a time: as in the kernel file
MOST_DILATION = 2

_cuda = cuda.KernelFile(
    __file__,
    scalars=["float", "bfloat16"],
    headers=["taps.cuh", "fragments.cuh"],
    unused=[{"SCALAR": "bfloat16", "TERMS": 3}],
    COLUMNS=(64, 16),
    TERMS=(3, 1),
)

weight_gradient = tensor_cores.weight_gradient


def unsuitable(dtype: np.dtype, w: Array, groups: int, window: Window | None = None) -> str | None:
    """Why this convolution cannot be calculated here; None if it can."""
    return unfit(dtype, w.shape[2], w.shape[3] // groups, window)


def unfit(dtype: np.dtype, in_group: int, out_group: int, window: Window | None) -> str | None:
    """The same for so many channels in each group."""
    reason = tensor_cores.unfit(dtype, in_group, out_group)
    if reason is not None:
        return reason
    if (
        window is None
        or window.kernel != (3, 3)
        or window.stride != (1, 1)
        or max(window.dilation) > MOST_DILATION
    ):
        return "it is for kernels of 3 x 3 with stride 1 and a dilation of 1 or 2"
    most = _shared(window, 64)
    if most > device.current().shared_limit:
        return f"it takes {most} bytes of shared memory, the GPU has {device.current().shared_limit}"
    return None


def wins(window: Window) -> bool:
    """Whether tiles are full enough: at least three quarters of them, in input and output."""
    return all(
        4 * height * width >= 3 * _tiles(height) * _tiles(width) * SIDE**2
        for height, width in (window.size, window.out)
    )


def forward(x: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    return _product(x, cuda.contiguous(w, x.dtype), b, gather.forward_axes(window), window, groups)


def data_gradient(dy: Array, w: Array, b: Array | None, window: Window, groups: int) -> Array:
    return _product(
        dy, implicit_gemm.turn(w, groups, dy.dtype), b, gather.data_gradient_axes(window), window, groups
    )


def _product(
    source: Array, w: Array, b: Array | None, axes: tuple[Axis, Axis], window: Window, groups: int
) -> Array:
    """What gather.product calculates, for these kernels."""
    source, w = cuda.contiguous(source), cuda.contiguous(w)
    bias = None if b is None else cuda.contiguous(b)
    rows, columns = axes
    images, in_group, out_group = len(source), w.shape[2], w.shape[3] // groups
    gather.pixel_count(images, rows.source, columns.source)
    out = cuda.empty((images, rows.out, columns.out, w.shape[3]), source.dtype)
    channels = _channels(out_group)
    tiles = gather.pixel_count(images, _tiles(rows.out), _tiles(columns.out)) * -(-out_group // channels)
    numbers = [(axis.source, axis.out, axis.origin, axis.spread) for axis in axes]
    _cuda.launch(
        "halo_product",
        *(source, w, bias, out, in_group, out_group, *numbers[0], *numbers[1]),
        blocks=(tiles, groups),
        shared=_shared(window, channels),
        COLUMNS=channels,
        TERMS=tensor_cores.terms(source.dtype),
    )
    return out


def _tiles(length: int) -> int:
    return -(-length // SIDE)


def _channels(out_group: int) -> int:
    """How many output channels a block makes, so that not much of it is empty."""
    return 16 if -(-out_group // 16) * 16 <= 0.6 * -(-out_group // 64) * 64 else 64


def _shared(window: Window, channels: int) -> int:
    """Bytes: twice a patch of a few source channels and the weights of nine taps."""
    height, width = (SIDE + 2 * dilation for dilation in window.dilation)
    return 2 * BYTES * (height * width + 9 * channels)
