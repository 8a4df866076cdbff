r"""Padding puts a border around an image, cropping cuts one off.

    y[n, p, q, c] = x[n, h(p), w(q), c]

    x     N H W C
    y     N P Q C

    pad, constant    h(p) = p - top; y is `value` where h or w is outside the image      P = top + H + bottom
    pad, reflect     h(p) = min(m, 2 (H - 1) - m)  with  m = (p - top) mod 2 (H - 1)
    crop             h(p) = p + top                                                      P = H - top - bottom

and likewise w(q) with the left side and W. Reflection mirrors the image at the centre of its first and last row,
which are not repeated: 3 2 1 | 0 1 2 3 | 2 1 0. The mirror image is mirrored again as often as is needed, so the
border may be wider than the image. An image of one row is repeated.

Backward. Row h of x appears in the rows p with h(p) = h, and gathers dy from them: once or never for a crop and a
constant border, several times near the edges of a reflected image. As matrices: y = A x B^T with A[p, h] = 1 where
h(p) = h, so that dx = A^T dy B (tinyseg/ops/separable.py).

Cost: no arithmetic to speak of; one reading of x and one writing of y, either way.

Source: Ronneberger, Fischer & Brox, "U-Net: Convolutional networks for biomedical image segmentation", MICCAI
2015, section 2 (cropped skip connections; mirrored borders for tile by tile prediction).
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks, geometry
from tinyseg.ops.geometry import Padding, Pair
from tinyseg.ops.separable import SeparableCache, Table, backward, forward

MODES = ("constant", "reflect")

Sides = int | tuple[int, int] | tuple[int, int, int, int]
"""How much on each side: one number, (height, width) or (top, bottom, left, right)."""


def _selection(target: Array, source: Array, count: int) -> Table:
    """The matrix that copies each source to its target; the other targets become 0."""
    return Table(target, source, np.ones(len(target)), count)


def _shifted(size: int, before: int, after: int) -> Table:
    return _selection(before + np.arange(size), np.arange(size), before + size + after)


def _reflected(size: int, before: int, after: int) -> Table:
    period = max(2 * (size - 1), 1)
    m = np.arange(-before, size + after) % period
    return _selection(np.arange(len(m)), np.minimum(m, period - m), len(m))


def _kept(size: int, before: int, after: int) -> Table:
    count = size - before - after
    return _selection(np.arange(count), before + np.arange(count), count)


def _fill_border(y: Array, sides: Padding, H: int, W: int, value: float) -> None:
    y[:, : sides.top] = y[:, sides.top + H :] = value
    y[:, :, : sides.left] = y[:, :, sides.left + W :] = value


_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16)


def _fill_border_cuda(y: Array, sides: Padding, H: int, W: int, value: float) -> None:
    _, P, Q, C = y.shape
    _cuda.launch("fill_border", y, y.size, H, W, P, Q, C, sides.top, sides.left, value, threads=y.size)


# ------------------------------------------------------------------------------------------------------- public


def pad(x: Array, padding: Sides, *, mode: str = "constant", value: float = 0.0) -> tuple[Array, SeparableCache]:
    """Put a border around the images.

    x: N H W C. padding: a number, a pair (height, width) or (top, bottom, left, right). mode: "constant", a border
    of `value`, or "reflect", a border that mirrors the image without its outermost row and column, of any width.
    Returns y, N P Q C.

    >>> x = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    >>> pad(x, (0, 2))[0].ravel()
    array([0., 0., 1., 2., 3., 0., 0.])
    >>> pad(x, (0, 2), mode="reflect")[0].ravel()
    array([3., 2., 1., 2., 3., 2., 1.])
    """
    checks.floating("pad", x=x)
    checks.rank("pad", "x", x, "N H W C")
    if mode not in MODES:
        raise ValueError(f"pad: mode must be one of {', '.join(MODES)}, got {mode!r}")
    _, H, W, _ = x.shape
    sides = _sides("pad", "padding", padding)
    matrix = _reflected if mode == "reflect" else _shifted
    y, cache = forward(x, matrix(H, sides.top, sides.bottom), matrix(W, sides.left, sides.right))
    if mode == "constant" and value != 0:
        fill = backend.choose(y, numpy=_fill_border, numba=_fill_border, cuda=_fill_border_cuda)
        fill(y, sides, H, W, value)
    return y, cache


def pad_backward(dy: Array, cache: SeparableCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return backward("pad_backward", dy, cache)


def crop(
    x: Array, sides: Sides | None = None, *, size: Pair | None = None, offset: Pair | None = None
) -> tuple[Array, SeparableCache]:
    """Cut off a border, or keep a part of a given size.

    x: N H W C. sides: how much to cut off, a number, a pair (height, width) or (top, bottom, left, right).
    size, instead of sides: what to keep, a number or (P, Q), from `offset` (its first row and column) on, or from
    the middle: then the first row is (H - P) // 2. Returns y, N P Q C.

    >>> x = np.arange(6.0).reshape(1, 1, 6, 1)
    >>> crop(x, (0, 0, 1, 3))[0].ravel()
    array([1., 2.])
    >>> crop(x, size=(1, 3))[0].ravel()
    array([1., 2., 3.])
    """
    checks.floating("crop", x=x)
    checks.rank("crop", "x", x, "N H W C")
    H, W = x.shape[1:3]
    if size is not None and sides is None:
        top, bottom, left, right = _sides_around((H, W), size, offset)
    elif sides is not None and size is None and offset is None:
        top, bottom, left, right = _sides("crop", "sides", sides)
    else:
        raise ValueError("crop: give either the sides to cut off, or the size to keep, with or without its offset")
    if top + bottom >= H or left + right >= W:
        raise ValueError(
            f"crop: cutting {top} + {bottom} rows and {left} + {right} columns leaves nothing of an image of "
            f"{H} x {W}"
        )
    return forward(x, _kept(H, top, bottom), _kept(W, left, right))


def crop_backward(dy: Array, cache: SeparableCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return backward("crop_backward", dy, cache)


def _sides_around(image: tuple[int, int], size: Pair, offset: Pair | None) -> Padding:
    """What lies above, below, left and right of the part to keep."""
    H, W = image
    P, Q = geometry.pair("crop", "size", size, minimum=1)
    if offset is None:
        top, left = (H - P) // 2, (W - Q) // 2
    else:
        top, left = geometry.pair("crop", "offset", offset, minimum=0)
    sides = Padding(top, H - P - top, left, W - Q - left)
    if min(sides) < 0:
        start = "" if offset is None else f" from row {top}, column {left} on"
        raise ValueError(f"crop: an image of {H} x {W} has no part of {P} x {Q}{start}; use ops.pad to enlarge it")
    return sides


def _sides(operator: str, name: str, value: Sides) -> Padding:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 4:
        top_bottom = geometry.pair(operator, f"{name} (top, bottom)", value[:2], minimum=0)
        left_right = geometry.pair(operator, f"{name} (left, right)", value[2:], minimum=0)
        return Padding(*top_bottom, *left_right)
    height, width = geometry.pair(operator, name, value, minimum=0)  # type: ignore[arg-type]
    return Padding(height, height, width, width)
