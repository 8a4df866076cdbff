"""Which algorithm computes a convolution. Each is a module (`Padded` a class) with the same three functions:

    forward(x, w, b, window, groups)           y, and the gradient in x of a transposed convolution
    data_gradient(dy, w, b, window, groups)    dx, and the forward pass of a transposed convolution
    weight_gradient(x, dy, window, groups)     dw of both

Those for the GPU have one more, which says why it cannot calculate a convolution, or None:

    unsuitable(dtype, w, groups, window)       dtype: of x, which for float32 weights may be bfloat16

A faster convolution is added here: one more module, one more name, and a line in `choose` that says when it wins.
"""

from types import ModuleType

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops.conv2d import (
    depthwise,
    direct,
    halo_tiles,
    implicit_gemm,
    padded,
    patches,
    reference,
    tensor_cores,
    winograd,
)
from tinyseg.ops.conv2d.padded import Padded
from tinyseg.ops.geometry import Window

ALGORITHMS = {"reference": reference, "direct": direct, "patches": patches}
GPU_ALGORITHMS = {
    "depthwise": depthwise,
    "halo_tiles": halo_tiles,
    "implicit_gemm": implicit_gemm,
    "tensor_cores": tensor_cores,
    "winograd": winograd,
}

# How full Winograd's blocks must be for it to win against each of the others. This is arithmetic for an H100, and
# has not been measured on one. Counted in FLOPs of the definition: products on CUDA cores reach about 46 of 67
# TFLOP/s; Winograd's algorithm makes 2.25 times as much of them, of which transformations and exchange cost a
# sixth: 88. Tensor cores run at up to 315 TFLOP/s with TF32, a third of which is 105 with three products, of which
# a kernel may reach two thirds: 70. With one product, inside allow_tf32(), they win in any case.
WINOGRAD_WINS_FROM = {implicit_gemm: 46 / 88, tensor_cores: 70 / 88, halo_tiles: 70 / 88}

# How long the sums must be, and how many terms there must be for all pixels, for it to win to cut results whose
# channels are not in fours out of padded ones. By the same arithmetic: a tile of 64 channels costs 2.8e-12 s for
# each pixel and term on CUDA cores, 1.8e-12 s on tensor cores, and less with TF32, bfloat16, or halo tiles of 16
# channels. Cutting 21 channels out of 24 takes 0.7e-10 s a pixel, adding them to dy 1e-10 s, which 256 terms save
# with some to spare. A pass takes up to three kernels more. The gain should be 20 us, for that.
PADDING_WINS_FROM_SUMS, PADDING_WINS_FROM_TERMS = 2**8, 2**25


def choose(algo: str, x: Array, w: Array, groups: int, window: Window | None = None) -> ModuleType | Padded:
    """The module for `algo`, or for "auto" the one that suits the backend and the weights (R, S, C/G, O).

    x: what is convolved, or the gradient that comes back.
    """
    if algo != "auto":
        return _named(algo, x, w, groups, window)
    if backend.name_for(x) == "cupy":
        return _best_on_gpu(x, w, groups, window)
    # With fewer than 8 channels on either side of a group, a matrix product spends its time on copying.
    small_groups = groups > 1 and min(w.shape[2], w.shape[3] // groups) < 8
    return backend.choose(x, numpy=reference, numba=direct if small_groups else patches)


def _best_on_gpu(x: Array, w: Array, groups: int, window: Window | None) -> ModuleType | Padded:
    if groups > 1 and depthwise.unsuitable(x.dtype, w, groups, window) is None:
        return depthwise
    channels = w.shape[2], w.shape[3] // groups
    best = _best_product(x.dtype, channels, window)
    if window is None:
        return best
    rounding = best is not implicit_gemm and cuda.tf32_is_allowed()
    possible = not rounding and winograd.unsuitable(x.dtype, w, groups, window) is None
    if possible and winograd.fullness(w, window) >= WINOGRAD_WINS_FROM[best]:
        return winograd
    if best is implicit_gemm and groups == 1 and _padding_wins(x, w, window):
        return _padded(x.dtype, channels, window)
    return best


def _best_product(dtype: np.dtype, channels: tuple[int, int], window: Window | None) -> ModuleType:
    """channels: of a group, in and out."""
    if tensor_cores.unfit(dtype, *channels):
        return implicit_gemm
    tiles_are_full = window is not None and halo_tiles.wins(window)
    return halo_tiles if tiles_are_full and halo_tiles.unfit(dtype, *channels, window) is None else tensor_cores


def _padded(dtype: np.dtype, channels: tuple[int, int], window: Window) -> ModuleType | Padded:
    in_channels, out_channels = (padded.whole(dtype, number) for number in channels)
    product = _best_product(dtype, (in_channels, out_channels), window)
    return product if product is implicit_gemm else Padded(product)


def _padding_wins(x: Array, w: Array, window: Window) -> bool:
    in_is_whole, out_is_whole = (padded.is_whole(x.dtype, number) for number in w.shape[2:])
    if in_is_whole == out_is_whole:
        return False
    sums = window.kernel[0] * window.kernel[1] * (w.shape[2] if in_is_whole else w.shape[3])
    pixels = len(x) * window.out[0] * window.out[1]
    return sums >= PADDING_WINS_FROM_SUMS and pixels * sums >= PADDING_WINS_FROM_TERMS


def _named(algo: str, x: Array, w: Array, groups: int, window: Window | None) -> ModuleType:
    on_gpu = not isinstance(x, np.ndarray)
    here, elsewhere = (GPU_ALGORITHMS, ALGORITHMS) if on_gpu else (ALGORITHMS, GPU_ALGORITHMS)
    if algo not in here:
        where = "GPU" if on_gpu else "CPU"
        known = f"algo {algo!r} is not for arrays on the {where}"
        raise ValueError(
            f"conv2d: {known if algo in elsewhere else f'unknown algo {algo!r}'}; "
            f"choose 'auto' or one of {sorted(here)}"
        )
    reason = here[algo].unsuitable(x.dtype, w, groups, window) if on_gpu else None
    if reason is not None:
        raise ValueError(f"conv2d: algo {algo!r} is not possible: {reason}; choose 'auto' or 'implicit_gemm'")
    return here[algo]
