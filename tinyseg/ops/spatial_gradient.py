r"""Gaussian blur, and how fast a map changes from pixel to pixel: where the borders of a soft mask are.

    gaussian_blur       y[n,h,w,c] = sum over i, j of  g[i] g[j] x[n, h + i, w + j, c]          i, j = -r .. r
                        g[i] = exp(-i^2 / (2 sigma^2)),  divided by the sum of all

    spatial_gradient    y[n,h,w,  c] = (x[n, h + 1, w, c] - x[n, h - 1, w, c]) / 2              down the rows
                        y[n,h,w,C+c] = (x[n, h, w + 1, c] - x[n, h, w - 1, c]) / 2              along a row

    gradient_magnitude  y[n,h,w,c] = sqrt(v^2 + u^2 + smoothing^2) - smoothing,   v, u the two of spatial_gradient

    x  N H W C;   y  N H W C, of spatial_gradient N H W 2C

Beyond the border the image is continued by its border pixels. So a constant stays constant and has no gradient
anywhere: the frame of an image is not an edge of what is in it.

The magnitude has no derivative where both differences are 0, which in a mask is nearly everywhere; `smoothing`
rounds the tip of the cone off there. What is 0 stays 0, and a gradient much larger than `smoothing` is as long
as without it.

Backward. Blur and gradient are linear, with a band matrix for the rows and one for the columns; the adjoint uses
the transposed ones (tinyseg/ops/separable.py), so that each cell gathers. Through the magnitude,

    dv = dy * v / (y + smoothing),     du = dy * u / (y + smoothing)

Cost: blur 2 * (2 r + 1) multiply-adds per element, gradient 4; each about two readings and one writing.

Sources: Canny, "A computational approach to edge detection", PAMI 1986 (derivatives of a Gaussian); Takikawa,
Acuna, Jampani & Fidler, "Gated-SCNN", ICCV 2019, equation 5 (as the layer of a loss).
"""

import math
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks, separable
from tinyseg.ops.arithmetic import add
from tinyseg.ops.concat import ConcatCache, concat, concat_backward
from tinyseg.ops.separable import SeparableCache, Table


class SpatialGradientCache(NamedTuple):
    down: SeparableCache
    along: SeparableCache


class GradientMagnitudeCache(NamedTuple):
    gradient: Array  # N H W 2C
    norm: Array  # N H W C, sqrt(v^2 + u^2 + smoothing^2)
    differences: SpatialGradientCache


# --------------------------------------------------------------------------------------------------- the matrices


def _band(size: int, weights: Array) -> Table:
    """The matrix that combines each of `size` cells with its neighbours; the middle weight is the cell's own."""
    reach = weights.size // 2
    target, offset = np.divmod(np.arange(size * weights.size), weights.size)
    source = np.clip(target + offset - reach, 0, size - 1)  # the border goes on
    return separable.table(target, source, weights[offset], size)


def gaussian(sigma: float, reach: int) -> Array:
    """The weights g[-reach] .. g[reach], of sum 1."""
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return weights / weights.sum()


DIFFERENCE = np.array([-0.5, 0.0, 0.5])
ITSELF = np.array([1.0])


# ------------------------------------------------------------------------------------ the magnitude: on the CPU


def _magnitude(gradient: Array, smoothing: float) -> tuple[Array, Array]:
    """The magnitude and the norm, N H W C."""
    v, u = np.split(gradient, 2, axis=-1)
    s = gradient.dtype.type(smoothing)
    norm = np.sqrt(v * v + u * u + s * s)
    return norm - s, norm


def _magnitude_backward(dy: Array, gradient: Array, norm: Array) -> Array:
    share = dy / norm
    return gradient * np.concatenate([share, share], axis=-1)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)


def _magnitude_cuda(gradient: Array, smoothing: float) -> tuple[Array, Array]:
    *image, channels = gradient.shape
    shape = (*image, channels // 2)
    norm, y = cuda.empty(shape, gradient.dtype), cuda.empty(shape, gradient.dtype)
    pixels, C = math.prod(image), shape[-1]
    width, blocks = cuda.tile(pixels, C)
    gradient = cuda.contiguous(gradient)
    _cuda.launch("magnitude_forward", gradient, smoothing, pixels, C, width, norm, y, blocks=blocks)
    return y, norm


def _magnitude_backward_cuda(dy: Array, gradient: Array, norm: Array) -> Array:
    *image, C = norm.shape
    dgradient = cuda.empty(gradient.shape, gradient.dtype)
    pixels = math.prod(image)
    width, blocks = cuda.tile(pixels, C)
    arrays = (cuda.contiguous(dy), gradient, norm)
    _cuda.launch("magnitude_backward", *arrays, pixels, C, width, dgradient, blocks=blocks)
    return dgradient


# ------------------------------------------------------------------------------------------------------- public


def gaussian_blur(x: Array, *, sigma: float, radius: int | None = None) -> tuple[Array, SeparableCache]:
    """Blur x (N, H, W, C) with a Gaussian. `radius` is r, by default ceil(3 sigma).

    >>> x = np.array([0.0, 0.0, 8.0, 0.0, 0.0]).reshape(1, 1, 5, 1)
    >>> gaussian_blur(x, sigma=0.8493218, radius=1)[0].ravel()  # 1 : 2 : 1
    array([0., 2., 4., 2., 0.])
    """
    _check("gaussian_blur", x)
    if not 0 < sigma < math.inf:
        raise ValueError(f"gaussian_blur: sigma must be more than 0 and finite, in pixels, got {sigma}")
    radius = math.ceil(3 * sigma) if radius is None else radius
    if not (hasattr(radius, "__index__") and radius >= 0):
        raise ValueError(f"gaussian_blur: radius must be an integer of 0 or more, got {radius!r}")
    weights = gaussian(sigma, int(radius))
    return separable.forward(x, _band(x.shape[1], weights), _band(x.shape[2], weights))


def gaussian_blur_backward(dy: Array, cache: SeparableCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    return separable.backward("gaussian_blur_backward", dy, cache)


def spatial_gradient(x: Array) -> tuple[Array, SpatialGradientCache]:
    """Central differences of x (N, H, W, C): (N, H, W, 2C), first those down the rows, then those along a row."""
    _check("spatial_gradient", x)
    rows, columns = x.shape[1:3]
    v, down = separable.forward(x, _band(rows, DIFFERENCE), _band(columns, ITSELF))
    u, along = separable.forward(x, _band(rows, ITSELF), _band(columns, DIFFERENCE))
    return concat([v, u])[0], SpatialGradientCache(down, along)


def spatial_gradient_backward(dy: Array, cache: SpatialGradientCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    shape = cache.down.shape
    checks.upstream("spatial_gradient_backward", dy, (*shape[:3], 2 * shape[3]), cache.down.dtype)
    halves = ConcatCache((shape, shape), 3, dy.dtype)
    dv, du = concat_backward(dy, halves)
    through_v = separable.backward("spatial_gradient_backward", dv, cache.down)  # type: ignore[arg-type]
    through_u = separable.backward("spatial_gradient_backward", du, cache.along)  # type: ignore[arg-type]
    return add(through_v, through_u)[0]


def gradient_magnitude(x: Array, *, smoothing: float = 1e-3) -> tuple[Array, GradientMagnitudeCache]:
    """How much x (N, H, W, C) changes from pixel to pixel, in each channel: N H W C, 0 or more.

    smoothing  more than 0: the gradient at which the tip of the cone is rounded off
    """
    if not smoothing > 0:
        raise ValueError(
            f"gradient_magnitude: smoothing must be more than 0, got {smoothing}; the magnitude has no derivative "
            "at 0 without it"
        )
    gradient, differences = spatial_gradient(x)
    y, norm = backend.choose(x, numpy=_magnitude, numba=_magnitude, cuda=_magnitude_cuda)(gradient, smoothing)
    return y, GradientMagnitudeCache(gradient, norm, differences)


def gradient_magnitude_backward(dy: Array, cache: GradientMagnitudeCache) -> Array:
    """The gradient with respect to `x`, N H W C."""
    checks.upstream("gradient_magnitude_backward", dy, cache.norm.shape, cache.norm.dtype)
    backward = backend.choose(
        dy, numpy=_magnitude_backward, numba=_magnitude_backward, cuda=_magnitude_backward_cuda
    )
    return spatial_gradient_backward(backward(dy, cache.gradient, cache.norm), cache.differences)


def _check(operator: str, x: Array) -> None:
    checks.floating(operator, x=x)
    checks.rank(operator, "x", x, "N H W C")
