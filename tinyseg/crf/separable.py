r"""A Gaussian filter on positions alone, by one convolution along the rows of the image and one along its columns.

    exp(-(x - x')² / 2 s_x² - (y - y')² / 2 s_y²)  is a product, so K = K_y ⊗ K_x:

    (K v)_(y, x)  =  sum_dy g(dy / s_y)  sum_dx g(dx / s_x) v_(y + dy, x + dx)                g(t) = exp(-t² / 2)

Each sum ends 4 bandwidths away, where g = 3 · 10^-4: the result is that of the exact filter to 10^-4 of its norm,
and pixels outside of the image count nothing. K is symmetric.

    v, K v  (H W, L)          cost: 2 (8 s_x + 1 + 8 s_y + 1) H W L FLOPs
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import backend
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf.features import bandwidths
from tinyseg.crf.filters import Filter

REACH = 4.0  # bandwidths


# ---------------------------------------------------------------------------------------------------- reference


def _convolve_reference(x: Array, taps: Array) -> Array:
    radius, length = len(taps) // 2, x.shape[1]
    y = np.zeros_like(x)
    for tap, shift in zip(taps, range(-radius, radius + 1), strict=True):
        first, last = max(0, -shift), min(length, length - shift)
        y[:, first:last] += tap * x[:, first + shift : last + shift]
    return y


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _convolve_kernel(x, taps, y):
    outer, length, inner = x.shape
    radius = taps.size // 2
    for task in prange(outer * length):
        a, b = np.int64(task) // length, np.int64(task) % length
        for c in range(inner):
            y[a, b, c] = 0
        for other in range(max(0, b - radius), min(length, b + radius + 1)):
            tap = taps[other - b + radius]
            for c in range(inner):
                y[a, b, c] += tap * x[a, other, c]


def _convolve_numba(x: Array, taps: Array) -> Array:
    y = np.empty_like(x)
    _convolve_kernel(x, taps, y)
    return y


def _convolve(x: Array, taps: Array) -> Array:
    """Along the middle axis of a contiguous array (outer, length, inner), with zeros around it."""
    run = backend.choose(x, numpy=_convolve_reference, numba=_convolve_numba)
    return run(x, taps.astype(x.dtype))


# ------------------------------------------------------------------------------------------------------- public


class SeparableFilter(Filter):
    """exp(-|p_i - p_j|² / 2 s²) on an image of size (H, W), s in pixels: a number or a pair (x, y)."""

    def __init__(self, size: tuple[int, int], bandwidth: float | Sequence[float], *, include_self: bool = True):
        height, width = size
        if height < 1 or width < 1:
            raise ValueError(f"SeparableFilter: size must be (height, width), 1 or more each; got {size}")
        self.size = (height, width)
        self.points = height * width
        self.include_self = include_self
        self.bandwidth = bandwidths("SeparableFilter", "bandwidth", bandwidth, 2).astype(np.float64)
        self.taps = [_taps(s, length) for s, length in zip(self.bandwidth, (width, height), strict=True)]  # x, y

    def apply(self, x: Array) -> Array:
        self._check(x)
        y = self._convolve(x, *self.taps)
        return y if self.include_self else y - x

    def apply_transpose(self, x: Array) -> Array:
        return self.apply(x)

    def moments(self, a: Array, b: Array) -> Array:
        """With the taps g(t) t² along one axis: dK / d(log s) is a separable filter too."""
        along_x, along_y = self.taps
        return np.array(
            [
                np.sum(a * self._convolve(b, _second_moment(along_x, self.bandwidth[0]), along_y)),
                np.sum(a * self._convolve(b, along_x, _second_moment(along_y, self.bandwidth[1]))),
            ]
        )

    def _convolve(self, x: Array, along_x: Array, along_y: Array) -> Array:
        height, width = self.size
        rows = _convolve(np.ascontiguousarray(x).reshape(height, width, -1), along_x)
        return _convolve(rows.reshape(1, height, -1), along_y).reshape(x.shape)


def _taps(bandwidth: float, length: int) -> Array:
    """g(-r / s) ... g(r / s), float64 (2 r + 1,); no longer than the image needs."""
    radius = min(int(np.ceil(REACH * bandwidth)), length - 1)
    return np.exp(-0.5 * (np.arange(-radius, radius + 1) / bandwidth) ** 2)


def _second_moment(taps: Array, bandwidth: float) -> Array:
    """The taps g(t) times t²."""
    radius = len(taps) // 2
    return taps * (np.arange(-radius, radius + 1) / bandwidth) ** 2
