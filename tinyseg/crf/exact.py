r"""The exact Gaussian filter: all N² pairs of points, one by one. It is the definition.

    K_ij = exp(-|f_i - f_j|² / 2)          (K x)_i = sum_j K_ij x_j          K is symmetric

    features  (N, d)      x, K x  (N, L)      K  (N, N), made in blocks of rows and never held whole

Its self term K_ii = 1 is kept, as every implementation does; the formula in the paper leaves it out
(`include_self=False`).

Cost: N² (2 d + 2 L) FLOPs and N² exponentials, all in float64. A quarter of a second for a 64 x 64 image, three
hours for a photograph: for tests, for small images and to judge the other filters.
"""

from collections.abc import Iterator

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.crf import arrays
from tinyseg.crf.filters import Filter, moments_by_filtering

BLOCK_BYTES = 1 << 25  # of K are held at a time

_cuda = cuda.KernelFile(__file__)

THREADS, TILE, LABELS = 128, 32, 8  # of a block, as in exact.cu: its points, those that it looks at, its columns


class ExactFilter(Filter):
    """K_ij = exp(-|f_i - f_j|² / 2) for features (N, d), by brute force in float64."""

    def __init__(self, features: Array, *, include_self: bool = True):
        features = check_features("ExactFilter", features)
        if not cuda.on_gpu(features):
            features = features.astype(np.float64)
            features -= features.mean(axis=0)  # K sees differences alone; small numbers make them exact
        self.features = features
        self.include_self = include_self
        self.points = len(features)

    def apply(self, x: Array) -> Array:
        self._check(x)
        if cuda.on_gpu(x):
            return self._apply_cuda(x)
        y = np.empty_like(x, order="C")
        for rows, k in self._blocks():
            y[rows] = k @ x
        return y

    def apply_transpose(self, x: Array) -> Array:
        return self.apply(x)

    def ones(self, dtype: type) -> Array:
        return arrays.ones(self.points, dtype, on_gpu=cuda.on_gpu(self.features))

    def moments(self, a: Array, b: Array) -> Array:
        if cuda.on_gpu(a):
            return moments_by_filtering(self, self.features, a, b)
        f = self.features
        total = np.zeros(f.shape[1])
        for rows, k in self._blocks():
            weight = k * (a[rows] @ b.T)  # (block, N)
            for feature in range(f.shape[1]):
                difference = f[rows, None, feature] - f[None, :, feature]
                total[feature] += np.sum(weight * difference**2)
        return total

    def _apply_cuda(self, x: Array) -> Array:
        """In the type of x; each thread adds up in float64 what its tiles give."""
        y = cuda.empty(x.shape, x.dtype)
        features = cuda.contiguous(self.features, x.dtype)
        (points, d), labels = features.shape, x.shape[1]
        numbers = (points, d, labels, self.include_self)
        shared = (d * THREADS + TILE * (d + LABELS)) * x.itemsize
        blocks = (-(-points // THREADS), -(-labels // LABELS))
        _cuda.launch("exact", features, cuda.contiguous(x), *numbers, y, blocks=blocks, shared=shared)
        return y

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """Rows of K, some at a time: (which rows, array (rows, N))."""
        f = self.features
        square = np.sum(f**2, axis=1)
        step = max(1, BLOCK_BYTES // (8 * self.points))
        for start in range(0, self.points, step):
            rows = slice(start, start + step)
            distance = square[rows, None] + square - 2 * f[rows] @ f.T  # |f_i - f_j|²
            k = np.exp(-0.5 * np.maximum(distance, 0))
            own = np.arange(len(k))
            k[own, start + own] = 1 if self.include_self else 0
            yield rows, k


def check_features(operator: str, features: Array) -> Array:
    """The features as an array (N, d), float32 or float64, all finite. On a GPU their values are not looked at."""
    features = features if cuda.on_gpu(features) else np.asarray(features)
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float32)
    if features.ndim != 2 or features.size == 0:
        raise ValueError(
            f"{operator}: features must have shape (N, d), a row for each point, got {features.shape}"
        )
    if cuda.on_gpu(features):
        return features
    bad = ~np.isfinite(features)
    if bad.any():
        point, feature = np.argwhere(bad)[0]
        raise ValueError(
            f"{operator}: features are not finite in {int(bad.sum())} of {bad.size} values, "
            f"the first is feature {feature} of point {point}"
        )
    return features
