r"""A Gaussian filter cut off at a window: each pixel listens to the k x k pixels around it, and to no others.

    (K v)_i  =  sum over the pixels j of the window around i of  exp(-|f_i - f_j|² / 2) v_j

    features  (H W, d)      v, K v  (H W, L)      weights  (H W, k²), made once for an image

With a window much smaller than the bandwidth of positions the long reach of the dense CRF is lost, and with it
the lattice's cost and error: this is exact inside of the window. K is symmetric. Pixels outside of the image
count nothing.

Cost: k² H W exponentials once, 2 k² H W L FLOPs per application; memory 4 k² H W bytes.

Source: Teichmann & Cipolla, "Convolutional CRFs for semantic segmentation", BMVC 2019, section 4. Their program
filters an image reduced four times in each direction; this one works on the image it is given.
"""

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf import arrays
from tinyseg.crf.exact import check_features
from tinyseg.crf.filters import Filter, moments_by_filtering

# ---------------------------------------------------------------------------------------------------- reference


def _weights_reference(features: Array, radius: int, weights: Array) -> None:
    height, width, _ = features.shape
    weights[:] = 0
    for here, there, tap in _windows(height, width, radius):
        distance = np.sum((features[here] - features[there]) ** 2, axis=-1)
        weights[(*here, tap)] = np.exp(features.dtype.type(-0.5) * distance)


def _apply_reference(x: Array, weights: Array, radius: int, y: Array) -> None:
    height, width, _ = x.shape
    y[:] = 0
    for here, there, tap in _windows(height, width, radius):
        y[here] += weights[(*here, tap)][:, :, None] * x[there]


def _windows(height: int, width: int, radius: int):
    """For each shift of the window: the pixels that have a neighbour there, those neighbours, and its number."""
    tap = 0
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            top, bottom = max(0, -dy), min(height, height - dy)
            left, right = max(0, -dx), min(width, width - dx)
            if top < bottom and left < right:
                here = (slice(top, bottom), slice(left, right))
                there = (slice(top + dy, bottom + dy), slice(left + dx, right + dx))
                yield here, there, tap
            tap += 1


# -------------------------------------------------------------------------------------------------------- Numba


@kernel
def _weights_kernel(features, radius, weights):
    height, width, d = features.shape
    for y in prange(height):
        row = np.int64(y)
        for x in range(width):
            tap = 0
            for other_row in range(row - radius, row + radius + 1):
                for other in range(x - radius, x + radius + 1):
                    weight = features.dtype.type(0)
                    if 0 <= other_row < height and 0 <= other < width:
                        distance = features.dtype.type(0)
                        for k in range(d):
                            difference = features[row, x, k] - features[other_row, other, k]
                            distance += difference * difference
                        weight = np.exp(-distance / 2)
                    weights[row, x, tap] = weight
                    tap += 1


@kernel
def _apply_kernel(x, weights, radius, y):
    height, width, labels = x.shape
    side = 2 * radius + 1
    for task in prange(height * width):
        row, column = np.int64(task) // width, np.int64(task) % width
        for c in range(labels):
            y[row, column, c] = 0
        for other_row in range(max(0, row - radius), min(height, row + radius + 1)):
            for other in range(max(0, column - radius), min(width, column + radius + 1)):
                weight = weights[row, column, (other_row - row + radius) * side + other - column + radius]
                for c in range(labels):
                    y[row, column, c] += weight * x[other_row, other, c]


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, WIDTH=(1, 4))


def _weights_cuda(features: Array, window: int, include_self: bool) -> Array:
    height, width, d = features.shape
    weights = cuda.empty((height, width, window * window), features.dtype)
    numbers = (height, width, d, window, include_self)
    _cuda.launch("local_weights", features, *numbers, weights, threads=weights.size)
    return weights


def _apply_cuda(x: Array, weights: Array, radius: int) -> Array:
    height, width, labels = x.shape
    y = cuda.empty(x.shape, x.dtype)
    arguments = (x, cuda.contiguous(weights, x.dtype), height, width, labels, 2 * radius + 1, y)
    pack = cuda.pack_width(labels)
    _cuda.launch("local_apply", *arguments, threads=y.size // pack, WIDTH=pack)
    return y


# ------------------------------------------------------------------------------------------------------- public


class LocalFilter(Filter):
    """exp(-|f_i - f_j|² / 2) where pixel j lies in the window x window pixels around i, otherwise 0."""

    def __init__(self, features: Array, size: tuple[int, int], *, window: int = 11, include_self: bool = True):
        features = check_features("LocalFilter", features)
        height, width = size
        if height * width != len(features):
            raise ValueError(
                f"LocalFilter: {len(features)} points are no image of size {size}; features need a row for each "
                f"of its {height * width} pixels"
            )
        if window < 1 or window % 2 == 0:
            raise ValueError(f"LocalFilter: window must be an odd number of pixels, got {window}")
        self.size, self.points, self.radius = (height, width), len(features), window // 2
        if cuda.on_gpu(features):
            self.features = cuda.contiguous(features).reshape(height, width, -1)
            self.weights = _weights_cuda(self.features, window, include_self)
            return
        self.features = np.ascontiguousarray(features).reshape(height, width, -1)
        self.weights = np.empty((height, width, window * window), features.dtype)
        fill = backend.choose(features, numpy=_weights_reference, numba=_weights_kernel)
        fill(self.features, self.radius, self.weights)
        if not include_self:
            self.weights[:, :, window * window // 2] = 0

    def apply(self, x: Array) -> Array:
        return self._apply(x, self.weights)

    def apply_transpose(self, x: Array) -> Array:
        return self.apply(x)

    def ones(self, dtype: type) -> Array:
        return arrays.ones(self.points, dtype, on_gpu=cuda.on_gpu(self.features))

    def moments(self, a: Array, b: Array) -> Array:
        """One filter for each feature, with the weights K_ij (f_ik - f_jk)²."""
        if cuda.on_gpu(a):
            return moments_by_filtering(self, self.features.reshape(self.points, -1), a, b)
        f = self.features.astype(np.float64)
        total = np.zeros(f.shape[2])
        for k in range(len(total)):
            weights = np.zeros(self.weights.shape)
            for here, there, tap in _windows(*self.size, self.radius):
                weights[(*here, tap)] = self.weights[(*here, tap)] * (f[(*here, k)] - f[(*there, k)]) ** 2
            total[k] = np.sum(a * self._apply(b.astype(np.float64), weights))
        return total

    def _apply(self, x: Array, weights: Array) -> Array:
        self._check(x)
        if cuda.on_gpu(x):
            return _apply_cuda(cuda.contiguous(x).reshape(*self.size, -1), weights, self.radius).reshape(x.shape)
        image = np.ascontiguousarray(x).reshape(*self.size, -1)
        y = np.empty_like(image)
        run = backend.choose(x, numpy=_apply_reference, numba=_apply_kernel)
        run(image, weights, self.radius, y)
        return y.reshape(x.shape)
