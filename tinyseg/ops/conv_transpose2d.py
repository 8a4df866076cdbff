r"""Transposed convolution: the adjoint of a convolution, used to enlarge ("deconvolution", "up-convolution").

It takes the same weight array as the convolution whose adjoint it is. With w of shape R S C/G O, conv2d leads from
C channels to O; this operator leads from O channels back to C, and from its P Q grid back to H W:

    y[n, h, v, c] = b[c] + sum over r, s, o of  x[n, p, q, o] * w[r, s, c, o]

        for all p, q, r, s with   h = p * stride - top + r * dilation   and   v = q * stride - left + s * dilation

    x   N P Q O              w   R S C/G O           b   C
    y   N H W C              H = (P - 1) stride - top - bottom + (R - 1) dilation + 1 + output_padding

A convolution with a stride maps several heights H to the same P; `output_padding` (0 .. stride - 1) says which of
them is meant: it adds rows at the bottom and columns at the right, which are computed like the others.

Backward. With A the linear map of conv2d, this operator is A^T. Its gradient in x is A dy, a convolution, and w
meets the same pairs of elements as in conv2d with the roles of image and gradient exchanged:

    dx = conv2d(dy, w)          dw[r, s, c, o] = sum over n, p, q of  dy[n, h, v, c] * x[n, p, q, o]

Cost: 2 N P Q O (C/G) R S FLOPs a pass, as for conv2d.

Sources: Zeiler et al., "Deconvolutional networks", CVPR 2010; Long, Shelhamer & Darrell, "Fully convolutional
networks for semantic segmentation", CVPR 2015, section 3.3; Dumoulin & Visin 2016, chapter 4.
"""

from typing import NamedTuple

from tinyseg.backend import Array
from tinyseg.ops import checks, geometry
from tinyseg.ops.conv2d import algorithms, bias_gradient, check_groups
from tinyseg.ops.geometry import PaddingLike, Pair, Window


class ConvTranspose2dCache(NamedTuple):
    x: Array  # N P Q O
    w: Array  # R S C/G O
    has_bias: bool
    window: Window  # of the convolution from H W to P Q
    groups: int
    algo: str


def conv_transpose2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Pair = 1,
    padding: PaddingLike = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    algo: str = "auto",
) -> tuple[Array, ConvTranspose2dCache]:
    """Apply the adjoint of conv2d with the weights w (R, S, C/groups, O) to x (N, P, Q, O); b is (C,) or None.

    stride, dilation, groups, algo: those of the convolution.
    padding: the rows and columns that the convolution would have padded, hence cut off here: a number,
        (height, width), (top, bottom, left, right), or "same" for an output of exactly stride times the input.
    output_padding: extra rows and columns at the bottom and right, less than the stride or the dilation.

    Returns y (N, H, W, C). Raises ValueError or TypeError for shapes and types that do not fit.

    >>> x = np.array([1.0, 2.0]).reshape(1, 1, 2, 1)
    >>> w = np.array([1.0, 10.0]).reshape(1, 2, 1, 1)
    >>> conv_transpose2d(x, w, stride=(1, 2))[0].ravel()
    array([ 1., 10.,  2., 20.])
    """
    checks.floating("conv_transpose2d", x=x, w=w, b=b, parameters=("w", "b"))
    checks.rank("conv_transpose2d", "x", x, "N P Q O")
    checks.rank("conv_transpose2d", "w", w, "R S C/groups O")
    if w.shape[3] != x.shape[3]:
        raise ValueError(
            f"conv_transpose2d: x of shape {x.shape} has {x.shape[3]} channels, and the last axis of w {w.shape} "
            "must be as long: w has the shape (R, S, C/groups, O) of the convolution from C to O channels"
        )
    channels = w.shape[2] * groups
    check_groups("conv_transpose2d", groups, channels, w.shape[3], w.shape[2])
    if b is not None:
        checks.shape("conv_transpose2d", "b", b, (channels,), "one for each of the C output channels")
    window = _window(x.shape[1:3], w.shape[:2], stride, padding, output_padding, dilation)
    y = algorithms.choose(algo, x, w, groups, window).data_gradient(x, w, b, window, groups)
    return y, ConvTranspose2dCache(x, w, b is not None, window, groups, algo)


def conv_transpose2d_backward(
    dy: Array, cache: ConvTranspose2dCache, *, need: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients (dx, dw, db), of the shapes of x, w and b; None for one that is not needed or absent."""
    x, w, has_bias, window, groups, algo = cache
    y_shape = (len(x), *window.size, w.shape[2] * groups)
    checks.upstream("conv_transpose2d_backward", dy, y_shape, x.dtype)
    algorithm = algorithms.choose(algo, dy, w, groups, window)
    dx = algorithm.forward(dy, w, None, window, groups) if need[0] else None
    dw = algorithm.weight_gradient(dy, x, window, groups) if need[1] else None
    db = bias_gradient(dy) if need[2] and has_bias else None
    return dx, dw, db


def _window(
    out: tuple[int, int],
    kernel: tuple[int, int],
    stride: Pair,
    padding: PaddingLike,
    output_padding: Pair,
    dilation: Pair,
) -> Window:
    """The window of the convolution that leads from the result (H, W) to `out`, the (P, Q) of the argument."""
    name = "conv_transpose2d"
    stride = geometry.pair(name, "stride", stride, minimum=1)
    dilation = geometry.pair(name, "dilation", dilation, minimum=1)
    extra = geometry.pair(name, "output_padding", output_padding, minimum=0)
    for axis in (0, 1):
        if extra[axis] >= max(stride[axis], dilation[axis]):
            raise ValueError(
                f"{name}: output_padding must be less than the stride or the dilation, got {output_padding} with "
                f"stride {stride} and dilation {dilation}"
            )
    enlarged = (out[0] * stride[0], out[1] * stride[1])
    pad = geometry.padding(name, padding, enlarged, kernel, stride, dilation)
    if padding == "same":
        return Window(enlarged, kernel, stride, dilation, pad, out)
    size = []
    for axis, (before, after) in enumerate(((pad.top, pad.bottom), (pad.left, pad.right))):
        extent = (kernel[axis] - 1) * dilation[axis] + 1
        length = (out[axis] - 1) * stride[axis] + extent - before - after + extra[axis]
        if length < 1:
            raise ValueError(
                f"{name}: the padding {tuple(pad)} cuts everything off: the output would be {length} elements "
                f"along the {('height', 'width')[axis]}; use less padding"
            )
        size.append(length)
    return Window((size[0], size[1]), kernel, stride, dilation, pad, out)
