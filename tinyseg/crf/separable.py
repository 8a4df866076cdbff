r"""A Gaussian filter on positions alone, by one convolution along the rows of the image and one along its columns.

    exp(-(x - x')² / 2 s_x² - (y - y')² / 2 s_y²)  is a product, so K = K_y ⊗ K_x:

    (K v)_(y, x)  =  sum_dy g(dy / s_y)  sum_dx g(dx / s_x) v_(y + dy, x + dx)                g(t) = exp(-t² / 2)

Each sum ends 4 bandwidths away, where g = 3 · 10^-4: the result is that of the exact filter to 10^-4 of its norm,
and pixels outside of the image count nothing. K is symmetric.

    v, K v  (H W, L)          cost: 2 (8 s_x + 1 + 8 s_y + 1) H W L FLOPs
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import backend, cuda, ops
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf import arrays
from tinyseg.crf.features import bandwidths
from tinyseg.crf.filters import Filter
from tinyseg.ops import separable

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


# ---------------------------------------------------------------- CUDA, by the kernel of all separable linear maps


def _convolve_cuda(x: Array, taps: Array) -> Array:
    outer, length, inner = x.shape
    target, tap = (index.reshape(-1) for index in np.indices((length, taps.size)))
    source = target + tap - taps.size // 2
    inside = (source >= 0) & (source < length)
    along = separable.table(target[inside], source[inside], taps[tap[inside]].astype(np.float64), length)
    one = np.zeros(1, int)
    nothing = separable.table(one, one, np.ones(1), 1)
    y = separable.forward(x.reshape(outer, length, 1, inner), along, nothing)[0]
    return y.reshape(x.shape)


def _convolve(x: Array, taps: Array) -> Array:
    """Along the middle axis of a contiguous array (outer, length, inner), with zeros around it."""
    run = backend.choose(x, numpy=_convolve_reference, numba=_convolve_numba, cuda=_convolve_cuda)
    return run(x, taps.astype(x.dtype))


# ------------------------------------------------------------------------------------------------------- public


class SeparableFilter(Filter):
    """exp(-|p_i - p_j|² / 2 s²) on an image of size (H, W), s in pixels: a number or a pair (x, y).

    on_gpu    what it is applied to is on a GPU
    """

    def __init__(
        self,
        size: tuple[int, int],
        bandwidth: float | Sequence[float],
        *,
        include_self: bool = True,
        on_gpu: bool = False,
    ):
        height, width = size
        if height < 1 or width < 1:
            raise ValueError(f"SeparableFilter: size must be (height, width), 1 or more each; got {size}")
        self.size = (height, width)
        self.points = height * width
        self.include_self = include_self
        self.on_gpu = on_gpu
        self.bandwidth = bandwidths("SeparableFilter", "bandwidth", bandwidth, 2).astype(np.float64)
        self.taps = [_taps(s, length) for s, length in zip(self.bandwidth, (width, height), strict=True)]  # x, y

    def apply(self, x: Array) -> Array:
        self._check(x)
        y = self._convolve(x, *self.taps)
        return y if self.include_self else ops.add(y, arrays.negative(x))[0]

    def apply_transpose(self, x: Array) -> Array:
        return self.apply(x)

    def ones(self, dtype: type) -> Array:
        return arrays.ones(self.points, dtype, on_gpu=self.on_gpu)

    def moments(self, a: Array, b: Array) -> Array:
        """With the taps g(t) t² along one axis: dK / d(log s) is a separable filter too."""
        along_x, along_y = self.taps
        of_x = self._convolve(b, _second_moment(along_x, self.bandwidth[0]), along_y)
        of_y = self._convolve(b, along_x, _second_moment(along_y, self.bandwidth[1]))
        return np.array([arrays.total(ops.mul(a, of)[0]) for of in (of_x, of_y)])

    def _convolve(self, x: Array, along_x: Array, along_y: Array) -> Array:
        height, width = self.size
        x = cuda.contiguous(x) if cuda.on_gpu(x) else np.ascontiguousarray(x)
        rows = _convolve(x.reshape(height, width, -1), along_x)
        return _convolve(rows.reshape(1, height, -1), along_y).reshape(x.shape)


def _taps(bandwidth: float, length: int) -> Array:
    """g(-r / s) ... g(r / s), float64 (2 r + 1,); no longer than the image needs."""
    radius = min(int(np.ceil(REACH * bandwidth)), length - 1)
    return np.exp(-0.5 * (np.arange(-radius, radius + 1) / bandwidth) ** 2)


def _second_moment(taps: Array, bandwidth: float) -> Array:
    """The taps g(t) times t²."""
    radius = len(taps) // 2
    return taps * (np.arange(-radius, radius + 1) / bandwidth) ** 2
