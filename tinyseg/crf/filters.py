r"""Gaussian filters: what every one of them can do, and the four ways to normalise one.

A filter stands for a matrix K over all pairs of N points, K_ij = exp(-|f_i - f_j|² / 2), or for something close to
it that is cheaper to apply. It is applied to each column of an array x (N, L), for instance to the probability map
of each label:

    (K x)_i  =  sum_j  K_ij x_j

Normalisation. Let n_i = (K 1)_i, the sum of row i. The matrix that mean field uses is F = D_after K D_before:

    mode         D_before    D_after     the transpose
    "none"       1           1           Kᵀ
    "before"     1 / n       1           D_before Kᵀ
    "after"      1           1 / n       Kᵀ D_after         a weighted mean: rows sum to 1
    "symmetric"  n^(-1/2)    n^(-1/2)    D Kᵀ D             stays symmetric if K is

"after" is the normalisation of the first dense CRF (2011) and of CRF-RNN, "symmetric" that of its successor (2013)
and of pydensecrf.

Bandwidths. Features are positions and colours over bandwidths, f_ik = p_ik / s_k, so that

    dK_ij / d(log s_k)  =  K_ij (f_ik - f_jk)²

A loss depends on F through some  S = <A, F B> = sum_i A_i . (F B)_i,  with A and B of shape (N, L). With
moments_k(A, B) = sum_ij (A_i . B_j) K_ij (f_ik - f_jk)²,  which each filter provides, the chain rule gives

    dS / d(log s_k)  =  moments_k(D_after A, D_before B)  +  moments_k(g, 1),         g_i = dS / dn_i
    g  =  0                                            "none"
    g  =  -(1 / n_i) B_i . (Fᵀ A)_i                    "before"
    g  =  -(1 / n_i) A_i . (F B)_i                     "after"
    g  =  -(1 / 2 n_i) (A_i . (F B)_i + B_i . (Fᵀ A)_i)   "symmetric"

Sources: Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NIPS
2011; the same, "Parameter learning and convergent inference for dense random fields", ICML 2013, sections 3 and
4.
"""

from typing import Literal

import numpy as np

from tinyseg import cuda, ops
from tinyseg.backend import Array
from tinyseg.crf import arrays
from tinyseg.ops import checks

Normalisation = Literal["none", "before", "after", "symmetric"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "before", "after", "symmetric")

TINY = 1e-20  # added to n: a point that even a filter without self term leaves alone divides by this, not by zero


class Filter:
    """A matrix K over all pairs of points, known by what it does to columns of numbers."""

    points: int  # N

    def apply(self, x: Array) -> Array:
        """K x for an array (N, L) of any float type; the result has that type too."""
        raise NotImplementedError

    def apply_transpose(self, x: Array) -> Array:
        """Kᵀ x, of the shape of x. For a symmetric K the same as `apply`."""
        raise NotImplementedError

    def moments(self, a: Array, b: Array) -> Array:
        """sum_ij (a_i . b_j) K_ij (f_ik - f_jk)² for each feature k, float64 (d,): see the module's docstring."""
        raise NotImplementedError

    def ones(self, dtype: type) -> Array:
        """(N, 1), on the GPU if the filter works there."""
        return np.ones((self.points, 1), dtype)

    def _check(self, x: Array) -> None:
        checks.floating(type(self).__name__, x=x)
        if x.ndim != 2 or x.shape[0] != self.points:
            raise ValueError(
                f"{type(self).__name__}: x must have shape ({self.points}, L), a row for each point, got {x.shape}"
            )


class Normalised:
    """F = D_after K D_before: a filter together with its normalisation."""

    def __init__(self, kernel: Filter, mode: Normalisation = "symmetric", dtype: type = np.float32):
        if mode not in NORMALISATIONS:
            raise ValueError(f"Normalised: mode must be one of {', '.join(NORMALISATIONS)}; got {mode!r}")
        self.kernel, self.mode = kernel, mode
        self.norm = kernel.apply(kernel.ones(dtype))  # n, (N, 1)
        scale = arrays.inverse(self.norm, TINY, root=mode == "symmetric")
        self.before = scale if mode in ("before", "symmetric") else None  # (N, 1), or None for all ones
        self.after = scale if mode in ("after", "symmetric") else None

    @property
    def points(self) -> int:
        return self.kernel.points

    def apply(self, x: Array) -> Array:
        """F x, (N, L) -> (N, L)."""
        return _scaled(self.kernel.apply(_scaled(x, self.before)), self.after)

    def apply_transpose(self, x: Array) -> Array:
        """Fᵀ x, (N, L) -> (N, L)."""
        return _scaled(self.kernel.apply_transpose(_scaled(x, self.after)), self.before)

    def log_bandwidth_gradient(self, a: Array, b: Array) -> Array:
        """dS / d(log s_k) of S = <a, F b> for each feature k: float64 (d,)."""
        a, b = cuda.astype(a, np.float64), cuda.astype(b, np.float64)
        gradient = self.kernel.moments(_scaled(a, self.after), _scaled(b, self.before))
        if self.mode == "none":
            return gradient
        parts = []
        if self.mode in ("after", "symmetric"):
            parts.append(arrays.row_products(a, self.apply(b)))
        if self.mode in ("before", "symmetric"):
            parts.append(arrays.row_products(b, self.apply_transpose(a)))
        norm = cuda.astype(self.norm, np.float64)
        one = self.kernel.ones(np.float64)
        for part in parts:
            g = ops.mul(part, arrays.inverse(norm, TINY, root=False))[0]
            gradient = gradient - self.kernel.moments(g, one) / len(parts)
        return gradient


def moments_by_filtering(kernel: Filter, features: Array, a: Array, b: Array) -> Array:
    """sum_ij (a_i . b_j) K_ij (f_ik - f_jk)² from what the filter does: the square, multiplied out."""
    a, b = cuda.astype(a, np.float64), cuda.astype(b, np.float64)
    pairs = arrays.row_products(a, kernel.apply(b))  # a_i . (K b)_i
    moments = []
    for k in range(features.shape[1]):
        f = cuda.astype(features[:, k : k + 1], np.float64)
        low, high = arrays.ranges(f)
        f = ops.add(f, arrays.here(-(low + high) / 2, f))[0]  # K sees differences alone; small numbers are exact
        fa, fb = ops.mul(a, f)[0], ops.mul(b, f)[0]
        first = arrays.total(ops.mul(pairs, ops.mul(f, f)[0])[0])
        second = arrays.total(arrays.row_products(fa, kernel.apply(fb)))
        third = arrays.total(arrays.row_products(a, kernel.apply(ops.mul(fb, f)[0])))
        moments.append(first - 2 * second + third)
    return np.array(moments)


def _scaled(x: Array, scale: Array | None) -> Array:
    return x if scale is None else ops.mul(x, cuda.astype(scale, x.dtype))[0]
