"""Which algorithm computes a convolution. Each is a module with the same three functions:

    forward(x, w, b, window, groups)           y, and the gradient in x of a transposed convolution
    data_gradient(dy, w, b, window, groups)    dx, and the forward pass of a transposed convolution
    weight_gradient(x, dy, window, groups)     dw of both

A faster convolution is added here: one more module, one more name, and a line in `choose` that says when it wins.
"""

from types import ModuleType

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array
from tinyseg.ops.conv2d import depthwise, direct, implicit_gemm, patches, reference

ALGORITHMS = {"reference": reference, "direct": direct, "patches": patches}
GPU_ALGORITHMS = {"depthwise": depthwise, "implicit_gemm": implicit_gemm}


def choose(algo: str, x: Array, w: Array, groups: int) -> ModuleType:
    """The module for `algo`, or for "auto" the one that suits the backend and the weights (R, S, C/G, O)."""
    if algo != "auto":
        return _named(algo, x)
    # With fewer than 8 channels on either side of a group, a matrix product spends its time on copying.
    small_groups = groups > 1 and min(w.shape[2], w.shape[3] // groups) < 8
    on_cpu = direct if small_groups else patches
    # A single input channel in each group: nothing to multiply matrices for.
    on_gpu = depthwise if groups > 1 and w.shape[2] == 1 else implicit_gemm
    return backend.choose(x, numpy=reference, numba=on_cpu, cuda=on_gpu)


def _named(algo: str, x: Array) -> ModuleType:
    on_gpu = not isinstance(x, np.ndarray)
    here, elsewhere = (GPU_ALGORITHMS, ALGORITHMS) if on_gpu else (ALGORITHMS, GPU_ALGORITHMS)
    if algo in here:
        return here[algo]
    where = "GPU" if on_gpu else "CPU"
    problem = f"algo {algo!r} is not for arrays on the {where}" if algo in elsewhere else f"unknown algo {algo!r}"
    raise ValueError(f"conv2d: {problem}; choose 'auto' or one of {sorted(here)}")
