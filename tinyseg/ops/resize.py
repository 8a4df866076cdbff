r"""Resizing, by the nearest cell or bilinearly, up and down.

    y[n, p, q, c] = sum over h, w of  A[p, h] * B[q, w] * x[n, h, w, c]

    x     N H W C
    y     N P Q C
    A     P H         row p holds one or two weights: those of the rows of x that row p of y is made of
    B     Q W         the same for columns

Where does row p of y lie in x? Seen as points, the corner cells stay where they are (`align_corners`); seen as
little squares, the corners of the image do, and centres lie at half a cell:

    align_corners    t = p * (H - 1) / (P - 1)              (0 where P = 1)
    otherwise        t = (p + 1/2) * H / P - 1/2            (given a scale, 1 / scale in place of H / P)

    bilinear         t is clamped to 0 .. H - 1; row floor(t) has the weight 1 - (t - floor(t)), the next the rest
    nearest-exact    row floor(t + 1/2)
    nearest          with align_corners, the same; otherwise row floor(p * H / P), which looks at the upper left
                     corner of an output cell and not at its centre. Enlarging by whole numbers, the two agree

The rules, and the names of the modes, are PyTorch's (which knows no nearest with align_corners), and so are these
two exceptions: a scale that leaves P = H (bilinear, nearest) or P = 2 H (nearest) after rounding counts as P / H.
Nothing is averaged: shrinking to less than half the size skips cells; use avg_pool2d there.

Backward. The map is linear, so dx = A^T dy B: each cell gathers the outputs that it had a part in. The sums, the
same for both directions, are in tinyseg/ops/separable.py; this file makes the matrices.

Cost: bilinear, about 6 operations per output element when enlarging by 2, and 5 bytes of float32 traffic, either
way.

Sources: Long, Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section
3.3 (bilinear upsampling as a layer); Gonzalez & Woods, "Digital image processing", 4th ed., 2018, section 2.4.
"""

import math
from collections.abc import Sequence

import numpy as np

from tinyseg.backend import Array
from tinyseg.ops import checks, geometry
from tinyseg.ops.geometry import Pair
from tinyseg.ops.separable import SeparableCache, Table, backward, forward, table

MODES = ("bilinear", "nearest", "nearest-exact")


def _resampling(size: int, count: int, scale: float | None, mode: str, align_corners: bool) -> Table:
    """The matrix that makes `count` cells out of `size`."""
    target = np.arange(count)
    if (mode != "nearest-exact" and count == size) or (mode == "nearest" and count == 2 * size):
        scale = None
    if align_corners:
        position = target * (size - 1) / max(count - 1, 1)
    else:
        # Dividing last keeps whole numbers whole: the floor of 49 * (1 / 49) would be 0.
        shift = 0.0 if mode == "nearest" else 0.5
        position = ((target + shift) * size / count if scale is None else (target + shift) / scale) - shift
    if mode != "bilinear":
        nearest = np.floor(position if mode == "nearest" and not align_corners else position + 0.5)
        return Table(target, np.clip(nearest, 0, size - 1).astype(int), np.ones(count), count)

    position = np.clip(position, 0, size - 1)
    source = np.floor(position).astype(int)
    weight = position - source
    between = weight > 0  # the others lie on a cell, and must not see its neighbour: 0 * NaN is NaN
    return table(
        np.concatenate([target, target[between]]),
        np.concatenate([source, source[between] + 1]),
        np.concatenate([1 - weight, weight[between]]),
        count,
    )


# ------------------------------------------------------------------------------------------------------- public


def resize(
    x: Array,
    size: Pair | None = None,
    *,
    scale: float | tuple[float, float] | None = None,
    mode: str = "bilinear",
    align_corners: bool = False,
) -> tuple[Array, SeparableCache]:
    """Bring images to a size, or enlarge them by a scale.

    x: N H W C. size: a number or (P, Q). scale, instead of a size: a number or a pair, more than 0; then P is
    floor(H * scale). mode: "bilinear", "nearest" or "nearest-exact"; see the top of this file for their rules.
    Returns y, N P Q C.

    >>> x = np.array([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> resize(x, (1, 4))[0].ravel()
    array([1. , 1.5, 2.5, 3. ])
    >>> resize(x, (1, 5), align_corners=True)[0].ravel()
    array([1. , 1.5, 2. , 2.5, 3. ])
    """
    checks.floating("resize", x=x)
    checks.rank("resize", "x", x, "N H W C")
    if mode not in MODES:
        raise ValueError(f"resize: mode must be one of {', '.join(MODES)}, got {mode!r}")
    H, W = x.shape[1:3]
    if scale is None:
        if size is None:
            raise ValueError("resize: give a size (P, Q) or a scale")
        P, Q = geometry.pair("resize", "size", size, minimum=1)
        scales = None, None
    else:
        if size is not None:
            raise ValueError(f"resize: give a size or a scale, not both; got size {size} and scale {scale}")
        scales = _scales(scale)
        P, Q = math.floor(H * scales[0]), math.floor(W * scales[1])
        if min(P, Q) < 1:
            raise ValueError(f"resize: scale {scale} leaves nothing of an image of {H} x {W}; use a larger one")
    rows = _resampling(H, P, scales[0], mode, align_corners)
    columns = _resampling(W, Q, scales[1], mode, align_corners)
    return forward(x, rows, columns)


def resize_backward(dy: Array, cache: SeparableCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return backward("resize_backward", dy, cache)


def _scales(scale: float | tuple[float, float]) -> tuple[float, float]:
    scales = scale if isinstance(scale, Sequence) else (scale, scale)
    if len(scales) != 2 or not all(isinstance(value, int | float | np.number) for value in scales):
        raise TypeError(f"resize: scale must be a number or a pair (height, width) of numbers, got {scale!r}")
    if not all(0 < value < math.inf for value in scales):
        raise ValueError(f"resize: scale must be more than 0 and finite, got {scale!r}")
    return float(scales[0]), float(scales[1])
