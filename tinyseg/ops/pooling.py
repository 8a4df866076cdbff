"""What max and average pooling share: the check of their options, and the cells that their windows see."""

from collections.abc import Iterator

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops import geometry
from tinyseg.ops.geometry import PaddingLike, Pair, Window


def window(
    operator: str, size: tuple[int, int], kernel: Pair, stride: Pair | None, padding: PaddingLike, ceil_mode: bool
) -> Window:
    """The windows of a pooling operator on an image of H, W = size. Without a stride they lie side by side.

    Padding must be smaller than the kernel: every window then sees at least one cell of the image.
    """
    result = geometry.window(operator, size, kernel, kernel if stride is None else stride, padding, 1, ceil_mode)
    R, S = result.kernel
    sides = result.padding
    if max(sides.top, sides.bottom) >= R or max(sides.left, sides.right) >= S:
        raise ValueError(
            f"{operator}: padding {tuple(sides)} (top, bottom, left, right) must be smaller than the kernel "
            f"{R, S}, or a window would see nothing of the image; use ops.pad for a wider border"
        )
    return result


def taps(window: Window) -> Iterator[tuple[int, slice, slice]]:
    """For each tap (r, s) of the kernel in row-major order: its number r * S + s, and the rows and columns of the
    extended image that the windows have there, P and Q of them."""
    (R, S), (P, Q), (down, right) = window.kernel, window.out, window.stride
    for r in range(R):
        for s in range(S):
            yield r * S + s, slice(r, r + P * down, down), slice(s, s + Q * right, right)


def extend(x: Array, window: Window) -> Array:
    """x with zeros around it: the leading padding, and behind it as much as the last windows reach."""
    after = []
    for axis, before in enumerate((window.padding.top, window.padding.left)):
        end = (window.out[axis] - 1) * window.stride[axis] + window.kernel[axis]
        after.append(max(end - before - window.size[axis], 0))
    return np.pad(x, ((0, 0), (window.padding.top, after[0]), (window.padding.left, after[1]), (0, 0)))


def cut(extended: Array, window: Window) -> Array:
    """The image in the middle of an extended one."""
    (H, W), top, left = window.size, window.padding.top, window.padding.left
    return extended[:, top : top + H, left : left + W]


def launch(
    kernels: cuda.KernelFile,
    kernel: str,
    arrays: tuple,
    window: Window,
    results: tuple,
    grid: tuple[int, int] | None = None,
) -> None:
    """Run a CUDA kernel: one thread for each pack of channels of each pixel of the first of the results.

    With a grid, pixels are not the result's, but so many rows and columns in each image.
    """
    N, height, width, C = results[0].shape
    rows, columns = grid or (height, width)
    pack = cuda.pack_width(C)
    pixels = N * rows * columns
    side, blocks = cuda.tile(pixels, C // pack)
    padding = window.padding
    numbers = (*window.size, *window.out, *window.kernel, *window.stride, padding.top, padding.left)
    kernels.launch(kernel, *arrays, pixels, C, side, *numbers, *results, blocks=blocks, WIDTH=pack)


def launch_adjoint(kernels: cuda.KernelFile, kernel: str, arrays: tuple, window: Window, image: Array) -> None:
    """Run the CUDA kernel that brings the numbers of windows back to the cells of the image.

    Where windows lie side by side, that is `kernel`_apart: a thread writes all cells of its window. It takes how
    many windows cover the image, too: more than P and Q where pooling left the last cells out.
    """
    if window.stride != window.kernel:
        launch(kernels, kernel, arrays, window, (image,))
        return
    (H, W), (R, S) = window.size, window.kernel
    cover = -(-(window.padding.top + H) // R), -(-(window.padding.left + W) // S)
    launch(kernels, f"{kernel}_apart", (*arrays, *cover), window, (image,), cover)
