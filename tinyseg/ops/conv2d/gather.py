"""What the CUDA kernels of convolution share: the geometry that they are launched with. See taps.cuh.

Along an axis, output element  h = phase + i * stride  meets tap r at the source element  i * step + offset(r):

    forward         source x    step = the convolution's stride    stride = 1
                    offset(r) = r * dilation - padding

    data gradient   source dy   step = 1    stride = the convolution's stride
                    offset(r) = (phase + padding - r * dilation) / stride,  for the r that make it whole
"""

from typing import NamedTuple

from tinyseg.backend import Array
from tinyseg.ops import sums
from tinyseg.ops.geometry import Window


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
