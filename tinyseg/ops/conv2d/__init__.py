r"""Convolution, as networks use the word: correlation with a kernel, with stride, padding, dilation and groups.

    y[n, p, q, o] = b[o] + sum over r, s, c of  x[n, h, v, c] * w[r, s, c, o]

        h = p * stride - top  + r * dilation          c runs over the input channels of o's group
        v = q * stride - left + s * dilation          x is 0 outside the image

    x   N H W C        w   R S C/G O        G groups split C and O into equal runs; o // (O/G) is o's group
    y   N P Q O        b   O                P = floor((H + top + bottom - (R - 1) dilation - 1) / stride) + 1

Backward. y is linear in x, in w and in b, so each gradient is the transposed linear map applied to dy: wherever
x[h, v, c] was multiplied by w[r, s, c, o] on its way into y[p, q, o],

    dx[n, h, v, c] = sum over r, s, o of  dy[n, p, q, o] * w[r, s, c, o]    for the p, q with  h, v  as above
    dw[r, s, c, o] = sum over n, p, q of  dy[n, p, q, o] * x[n, h, v, c]
    db[o]          = sum over n, p, q of  dy[n, p, q, o]

dx with a stride is a convolution of dy with zeros put between its elements: the transposed convolution, which
`ops.conv_transpose2d` offers as an operator of its own.

Cost: 2 N P Q O (C/G) R S FLOPs forward, the same again for each of dx and dw.

Sources: LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998; Dumoulin &
Visin, "A guide to convolution arithmetic for deep learning", 2016 (all relationships of sizes); Yu & Koltun,
"Multi-scale context aggregation by dilated convolutions", ICLR 2016, eq. 2; Krizhevsky et al., NIPS 2012 (groups).
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks, geometry, sums
from tinyseg.ops.conv2d import algorithms
from tinyseg.ops.geometry import PaddingLike, Pair, Window


class Conv2dCache(NamedTuple):
    x: Array  # N H W C
    w: Array  # R S C/G O
    has_bias: bool
    window: Window
    groups: int
    algo: str


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Pair = 1,
    padding: PaddingLike = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algo: str = "auto",
) -> tuple[Array, Conv2dCache]:
    """Convolve images x (N, H, W, C) with weights w (R, S, C/groups, O), and add the bias b (O,).

    stride, dilation: a number, or (height, width).
    padding: zeros around the image: a number, (height, width), (top, bottom, left, right), or "same" for
        ceil(H / stride) output rows.
    groups: both channel axes are split into so many runs that do not see each other; `groups=C` is depthwise.
    algo: "auto", or on the CPU "patches" (matrix products), "direct" (loops), "reference" (NumPy, the definition),
        on the GPU "implicit_gemm" (matrix products), "tensor_cores" (the same on tensor cores, for float32 with
        channels in fours and bfloat16 with channels in eights), "halo_tiles" (also, for float32 and 3 x 3 with
        stride 1), "winograd" (fewer multiplications, for 3 x 3 with stride 1), "depthwise" (for groups of one
        channel).

    On a GPU x may be bfloat16; w, b and their gradients are float32 then.

    Returns y (N, P, Q, O), of the type of x. Raises ValueError or TypeError for shapes and types that do not fit.

    >>> x = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> w = np.array([1.0, -1.0]).reshape(1, 2, 1, 1)         # left minus right
    >>> conv2d(x, w)[0][0, :, :, 0]
    array([[-1., -1.],
           [-1., -1.],
           [-1., -1.]])
    """
    checks.floating("conv2d", x=x, w=w, b=b, parameters=("w", "b"))
    checks.rank("conv2d", "x", x, "N H W C")
    checks.rank("conv2d", "w", w, "R S C/groups O")
    check_groups("conv2d", groups, x.shape[3], w.shape[3], w.shape[2])
    if b is not None:
        checks.shape("conv2d", "b", b, (w.shape[3],), "one for each output channel of w")
    window = geometry.window("conv2d", x.shape[1:3], w.shape[:2], stride, padding, dilation)
    y = algorithms.choose(algo, x, w, groups, window).forward(x, w, b, window, groups)
    return y, Conv2dCache(x, w, b is not None, window, groups, algo)


def conv2d_backward(
    dy: Array, cache: Conv2dCache, *, need: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients (dx, dw, db), of the shapes of x, w and b; None for one that is not needed or absent."""
    x, w, has_bias, window, groups, algo = cache
    checks.upstream("conv2d_backward", dy, (len(x), *window.out, w.shape[3]), x.dtype)
    algorithm = algorithms.choose(algo, dy, w, groups, window)
    dx = algorithm.data_gradient(dy, w, None, window, groups) if need[0] else None
    dw = algorithm.weight_gradient(x, dy, window, groups) if need[1] else None
    db = bias_gradient(dy) if need[2] and has_bias else None
    return dx, dw, db


def bias_gradient(dy: Array) -> Array:
    """The sum over all pixels of dy (N, P, Q, O): in float64, since a float32 sum of a million terms drifts."""
    return backend.choose(dy, numpy=_pixel_sum, numba=_pixel_sum, cuda=_pixel_sum_cuda)(dy)


def _pixel_sum(dy: Array) -> Array:
    return dy.sum(axis=(0, 1, 2), dtype=np.float64).astype(dy.dtype)


def _pixel_sum_cuda(dy: Array) -> Array:
    pixels = dy.shape[0] * dy.shape[1] * dy.shape[2]
    return sums.over_middle(dy, 1, pixels, dy.shape[3], dtype=cuda.real(dy.dtype)).reshape(-1)


def check_groups(operator: str, groups: int, channels: int, out_channels: int, in_group: int) -> None:
    """The weights (R, S, C/groups, O) fit to C and O channels in this number of groups."""
    if not isinstance(groups, int | np.integer) or groups < 1:
        raise ValueError(f"{operator}: groups must be a whole number of 1 or more, got {groups!r}")
    if channels != in_group * groups:
        raise ValueError(
            f"{operator}: x has {channels} channels, but the weights of shape (R, S, {in_group}, {out_channels}) "
            f"with groups={groups} take {in_group} x {groups} = {in_group * groups}; w must have the shape "
            "(R, S, C/groups, O)"
        )
    if out_channels % groups:
        raise ValueError(
            f"{operator}: the last axis of w, {out_channels}, cannot be split into groups={groups} equal runs"
        )
