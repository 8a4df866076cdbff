"""Which algorithm computes a convolution. Each is a module with the same three functions:

    forward(x, w, b, window, groups)           y, and the gradient in x of a transposed convolution
    data_gradient(dy, w, b, window, groups)    dx, and the forward pass of a transposed convolution
    weight_gradient(x, dy, window, groups)     dw of both

A faster convolution is added here: one more module, one more name, and a line in `choose` that says when it wins.
"""

from types import ModuleType

from tinyseg import backend
from tinyseg.backend import Array
from tinyseg.ops.conv2d import direct, patches, reference

ALGORITHMS = {"reference": reference, "direct": direct, "patches": patches}


def choose(algo: str, x: Array, w: Array, groups: int) -> ModuleType:
    """The module for `algo`, or for "auto" the one that suits the backend and the weights (R, S, C/G, O)."""
    if algo != "auto":
        if algo not in ALGORITHMS:
            raise ValueError(f"conv2d: unknown algo {algo!r}; choose 'auto' or one of {sorted(ALGORITHMS)}")
        return ALGORITHMS[algo]
    # With fewer than 8 channels on either side of a group, a matrix product spends its time on copying.
    small_groups = groups > 1 and min(w.shape[2], w.shape[3] // groups) < 8
    return backend.choose(x, numpy=reference, numba=direct if small_groups else patches)
