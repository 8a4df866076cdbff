r"""In which cell of the permutohedral lattice does a point lie, and where in it?

The lattice. Take d + 1 coordinates instead of d, and look along the diagonal (1, ..., 1): the integer grid, seen
from there, is a lattice in the d-dimensional plane  x_0 + ... + x_d = 0  whose cells are all the same simplex. A
simplex in d dimensions has d + 1 corners, where a cube would have 2^d: that is the point of it.

    1. Scale and elevate. The feature vector f (d,) is rotated into the plane,
           c_k  =  f_k s_k                                 s_k = sqrt(2/3) (d + 1) / sqrt((k + 1) (k + 2))
           e_0  =  c_0 + ... + c_{d-1}
           e_j  =  c_j + ... + c_{d-1} - j c_{j-1}         j = 1 ... d
       an isometry times sqrt(2/3) (d + 1). With it, splatting, blurring and slicing (see `filtering`) together
       have the variance of the Gaussian exp(-|f|² / 2).
    2. Round. v_j = round(e_j / (d + 1)) gives the nearest point (d + 1) v of the grid with spacing d + 1. It lies
       in the plane if sum_j v_j = 0, and otherwise some coordinates must be moved by one step:
    3. Rank. rank_j is the place of e_j - (d + 1) v_j among its d + 1 fellows, largest first. When sum_j v_j is
       added to all ranks, those leave 0 ... d whose coordinate must move: by d + 1, and so does the rank. Now
       (d + 1) v is corner 0 of the cell that holds the point, and the ranks say which of the cells around it.
    4. Corners. Corner q + 1 is corner q plus the step  a_j = (1, ..., 1) - (d + 1) unit_j,  with j the coordinate
       of rank d - q.
    5. Weights. Sort t_j = (e_j - (d + 1) v_j) / (d + 1) by rank, largest first: the barycentric coordinates are
       the gaps. w_{d-r} is t of rank r minus t of rank r + 1, and w_0 what is missing to one.

A lattice point as one integer. The steps a_0 ... a_d generate the lattice, and their sum is zero, so the point x
is
    x  =  n_0 a_0 + ... + n_{d-1} a_{d-1}            n_k = (x_d - x_k) / (d + 1), an integer
and n is packed into one 64-bit code, n_0 stride_0 + ... + n_{d-1} stride_{d-1}. Taking the step a_j means adding
a constant to the code: stride_j, and for j = d minus the sum of all strides. Corners and neighbours cost one
addition each.

    features  (N, d)      codes  (N, d + 1) int64      weights  (N, d + 1) of the type of the features, >= 0, sum 1

Arithmetic follows, operation by operation and in float32, the published program, because a point on the border
of two cells may create a corner of either, and that choice changes which neighbours a blur will find.

Source: Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice", Eurographics 2010,
sections 3.1 and 3.2.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.crf import arrays

BLOCK = 4096  # points that one task of a parallel loop handles
TOGETHER = 128  # points that go through the same step together: their numbers stay in the nearest cache


class Packing(NamedTuple):
    """How a lattice point becomes one integer."""

    steps: Array  # (d + 1,) int64: what the step a_j adds to a code
    lowest: int  # no code is smaller
    bits: int  # no code minus `lowest` needs more
    block: int  # codes minus `lowest` differ in the first two digits if their quotients by this differ; 1 if d < 3


class Simplices(NamedTuple):
    """The cell of each point."""

    codes: Array  # (N, d + 1) int64: the corners
    weights: Array  # (N, d + 1): barycentric coordinates


# ------------------------------------------------------------------------------------------- geometry in numbers


def feature_scale(d: int, dtype: np.dtype) -> Array:
    """s_k, (d,). The factors are rounded to the type one by one, as in the published program."""
    spread = np.asarray(np.sqrt(2.0 / 3.0) * (d + 1), dtype)
    return np.asarray([1.0 / np.sqrt((k + 2.0) * (k + 1.0)) * float(spread) for k in range(d)], dtype)


def packing(features: Array) -> Packing:
    """Strides that keep the codes of all corners, and of all their neighbours, apart.

    n_k is linear in the features up to rounding, so its range follows from the range of each feature. ValueError
    if the lattice has more points than 62 bits can number, or if the features' type has too few digits.
    """
    d = features.shape[1]
    low, high = arrays.ranges(features)
    if not np.isfinite(low + high).all():
        raise ValueError("LatticeFilter: features are not finite")
    elevation = _elevation_matrix(d)  # (d + 1, d)
    size = np.abs(elevation) @ np.maximum(abs(low), abs(high))
    if size.max() * np.finfo(features.dtype).eps > 0.01:
        raise ValueError(
            f"LatticeFilter: features reach {max(abs(low).max(), abs(high).max()):.4g} bandwidths, "
            f"too many for {features.dtype}; a bandwidth is far too small for the range of its feature"
        )
    forms = _forms(d)
    to_m = forms @ (elevation[d] - elevation[:d]) / (d + 1)  # (d, d): the linear forms of n from the features
    # The n_k of a cell's corners differ from those of the point by 1 at most, their neighbours' by 1 more.
    margin = 3 * np.abs(forms).sum(axis=1)
    lowest = np.floor(np.minimum(to_m * low, to_m * high).sum(axis=1) - margin)
    highest = np.ceil(np.maximum(to_m * low, to_m * high).sum(axis=1) + margin)
    ranges = [int(h) - int(lo) + 1 for lo, h in zip(lowest, highest, strict=True)]
    strides = [1] * d
    for k in range(d - 2, -1, -1):
        strides[k] = strides[k + 1] * ranges[k + 1]
    bits = (strides[0] * ranges[0]).bit_length()
    if bits > 62:
        raise ValueError(
            f"LatticeFilter: the lattice has 2^{bits} points for features that span "
            f"{np.round(high - low, 1).tolist()} bandwidths, and 2^62 can be numbered; make the bandwidths larger"
        )
    first = sum(int(lo) * stride for lo, stride in zip(lowest, strides, strict=True))
    steps = [sum(int(forms[k, j]) * strides[k] for k in range(d)) for j in range(d)]
    return Packing(np.array([*steps, -sum(steps)], np.int64), first, bits, strides[1] if d >= 3 else 1)


def _forms(d: int) -> Array:
    """Which linear forms of n are packed into a code, most significant first: integers (d, d), invertible.

    The first two forms follow feature 1 alone and feature 0 alone, y and x of an image: points that are close
    in the image then have vertices that are close in memory, in the same order, so that the threads that work on
    the two halves of the pixels and of the vertices mostly read what they wrote. With n_d = 0,

        x_0 + x_1 - 2 x_2  =  (d + 1) (-n_0 - n_1 + 2 n_2)            where e_0 + e_1 - 2 e_2 = 6 c_1
        x_0 - x_1          =  (d + 1) (-n_0 + n_1)                    where e_0 - e_1 = 2 c_0
    """
    forms = np.eye(d, dtype=np.int64)
    if d >= 2:
        forms[0, :2] = -1
        forms[1, :2] = -1, 1
    if d >= 3:
        forms[0, 2] = 2
    return forms


def _elevation_matrix(d: int) -> Array:
    """e = A f, (d + 1, d)."""
    matrix = np.zeros((d + 1, d))
    for k, scale in enumerate(feature_scale(d, np.dtype(np.float64))):
        matrix[: k + 1, k] = scale
        matrix[k + 1, k] = -(k + 1) * scale
    return matrix


# ---------------------------------------------------------------------------------------------------- reference


def _simplices_reference(features: Array, scale: Array, steps: Array) -> Simplices:
    n, d = features.shape
    inverse = features.dtype.type(1 / (d + 1))

    elevated = np.empty((n, d + 1), features.dtype)
    total = np.zeros(n, features.dtype)
    for j in range(d, 0, -1):
        c = features[:, j - 1] * scale[j - 1]
        elevated[:, j] = total - features.dtype.type(j) * c
        total = total + c
    elevated[:, 0] = total

    v = np.rint(elevated * inverse)
    rest = elevated - v * features.dtype.type(d + 1)
    rank = np.zeros((n, d + 1), np.int64)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            smaller = rest[:, i] < rest[:, j]
            rank[:, i] += smaller
            rank[:, j] += ~smaller
    rank += v.sum(axis=1).astype(np.int64)[:, None]
    v += (rank < 0).astype(v.dtype) - (rank > d).astype(v.dtype)
    rank %= d + 1

    t = (elevated - v * features.dtype.type(d + 1)) * inverse
    weights = np.zeros((n, d + 2), features.dtype)
    pixel = np.arange(n)
    for j in range(d + 1):
        weights[pixel, d - rank[:, j]] += t[:, j]
        weights[pixel, d + 1 - rank[:, j]] -= t[:, j]
    weights[:, 0] += 1 + weights[:, d + 1]

    codes = np.empty((n, d + 1), np.int64)
    codes[:, 0] = (v[:, d:].astype(np.int64) - v[:, :d].astype(np.int64)) @ steps[:d]
    axis_of_rank = np.argsort(rank, axis=1)
    for q in range(d):
        codes[:, q + 1] = codes[:, q] + steps[axis_of_rank[:, d - q]]
    return Simplices(codes, np.ascontiguousarray(weights[:, : d + 1]))


# -------------------------------------------------------------------------------------------------------- Numba


@kernel(strict=True)
def _simplices_kernel(features, scale, number, inverse, steps, codes, weights):
    """Step by step, each step for some points at once: a loop that takes several points with one instruction.

    number holds 0, 1, ..., d + 1 in the type of the features: an int would widen a float32.
    """
    n, d = features.shape
    one, corners = number[1], number[d + 1]
    for task in prange((n + BLOCK - 1) // BLOCK):
        elevated = np.empty((d + 1, TOGETHER), features.dtype)
        v = np.empty((d + 1, TOGETHER), features.dtype)
        rest = np.empty((d + 1, TOGETHER), features.dtype)
        rank = np.empty((d + 1, TOGETHER), np.int32)
        shift = np.empty(TOGETHER, np.int32)
        axis_of_rank = np.empty((d + 1, TOGETHER), np.int32)
        begin = np.int64(task) * BLOCK
        for first in range(begin, min(begin + BLOCK, n), TOGETHER):
            count = min(TOGETHER, n - first)
            for i in range(count):
                elevated[0, i] = number[0]  # the sum so far
                shift[i] = 0
            for j in range(d, 0, -1):
                for i in range(count):
                    c = features[first + i, j - 1] * scale[j - 1]
                    elevated[j, i] = elevated[0, i] - number[j] * c
                    elevated[0, i] += c

            for j in range(d + 1):
                for i in range(count):
                    v[j, i] = np.rint(elevated[j, i] * inverse)
                    rest[j, i] = elevated[j, i] - v[j, i] * corners
                    shift[i] += np.int32(v[j, i])
                    rank[j, i] = 0
            for j in range(d + 1):
                for k in range(j + 1, d + 1):
                    for i in range(count):
                        smaller = np.int32(rest[j, i] < rest[k, i])
                        rank[j, i] += smaller
                        rank[k, i] += np.int32(1) - smaller
            for j in range(d + 1):
                for i in range(count):
                    r = rank[j, i] + shift[i]
                    up = np.int32(r < 0) - np.int32(r > d)
                    rank[j, i] = r + np.int32(d + 1) * up
                    v[j, i] += features.dtype.type(up)
            for j in range(d + 1):
                for i in range(count):
                    t = (elevated[j, i] - v[j, i] * corners) * inverse
                    rest[rank[j, i], i] = t
                    axis_of_rank[rank[j, i], i] = j

            for i in range(count):
                weights[first + i, 0] = rest[d, i] + (one - rest[0, i])
                for q in range(1, d + 1):
                    weights[first + i, q] = rest[d - q, i] - rest[d + 1 - q, i]
                code = np.int64(0)
                for k in range(d):
                    code += np.int64(v[d, i] - v[k, i]) * steps[k]
                codes[first + i, 0] = code
                for q in range(d):
                    code += steps[axis_of_rank[d - q, i]]
                    codes[first + i, q + 1] = code


def _simplices_numba(features: Array, scale: Array, steps: Array) -> Simplices:
    n, d = features.shape
    codes, weights = np.empty((n, d + 1), np.int64), np.empty((n, d + 1), features.dtype)
    number, inverse = np.arange(d + 2, dtype=features.dtype), features.dtype.type(1 / (d + 1))
    _simplices_kernel(np.ascontiguousarray(features), scale, number, inverse, steps, codes, weights)
    return Simplices(codes, weights)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__)

THREADS = 128  # of a block


def _simplices_cuda(features: Array, scale: Array, steps: Array) -> Simplices:
    n, d = features.shape
    codes, weights = cuda.empty((n, d + 1), np.dtype(np.int64)), cuda.empty((n, d + 1), features.dtype)
    given = (cuda.contiguous(features), cuda.constant(scale), cuda.constant(steps), n, d, 1 / (d + 1))
    shared = (5 * d + 6) * THREADS * features.itemsize
    _cuda.launch("find_simplices", *given, codes, weights, threads=n, shared=shared)
    return Simplices(codes, weights)


# ------------------------------------------------------------------------------------------------------- public


def find_simplices(features: Array, pack: Packing) -> Simplices:
    """The corners of each point's cell, and its weights: features (N, d), float32 or float64."""
    find = backend.choose(features, numpy=_simplices_reference, numba=_simplices_numba, cuda=_simplices_cuda)
    return find(features, feature_scale(features.shape[1], features.dtype), pack.steps)
