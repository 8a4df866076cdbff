"""Which algorithm computes a convolution. Each is a module with the same three functions:

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
    patches,
    reference,
    tensor_cores,
    winograd,
)
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


def choose(algo: str, x: Array, w: Array, groups: int, window: Window | None = None) -> ModuleType:
    """The module for `algo`, or for "auto" the one that suits the backend and the weights (R, S, C/G, O)."""
    if algo != "auto":
        return _named(algo, x, w, groups, window)
    if backend.name_for(x) == "cupy":
        return _best_on_gpu(x.dtype, w, groups, window)
    # With fewer than 8 channels on either side of a group, a matrix product spends its time on copying.
    small_groups = groups > 1 and min(w.shape[2], w.shape[3] // groups) < 8
    return backend.choose(x, numpy=reference, numba=direct if small_groups else patches)


def _best_on_gpu(dtype: np.dtype, w: Array, groups: int, window: Window | None) -> ModuleType:
    if groups > 1 and depthwise.unsuitable(dtype, w, groups, window) is None:
        return depthwise
    best = _best_product(dtype, w, groups, window)
    rounding = best is not implicit_gemm and cuda.tf32_is_allowed()
    if rounding or window is None or winograd.unsuitable(dtype, w, groups, window) is not None:
        return best
    return winograd if winograd.fullness(w, window) >= WINOGRAD_WINS_FROM[best] else best


def _best_product(dtype: np.dtype, w: Array, groups: int, window: Window | None) -> ModuleType:
    if tensor_cores.unsuitable(dtype, w, groups, window):
        return implicit_gemm
    tiles_are_full = window is not None and halo_tiles.wins(window)
    if tiles_are_full and halo_tiles.unsuitable(dtype, w, groups, window) is None:
        return halo_tiles
    return tensor_cores


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
