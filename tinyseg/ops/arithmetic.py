r"""Sum and product of two arrays, element by element, with NumPy's broadcasting.

    add     y = a + b          da = sum(dy)         db = sum(dy)
    mul     y = a * b          da = sum(dy * b)     db = sum(dy * a)

Shapes. Axes are aligned at the last one; an axis of length 1, or a missing one, is stretched to the other's
length: a gate (N, H, W, 1) times features (N, H, W, C), a channel weight (N, 1, 1, C) times the same, a residual
branch plus its shortcut. A stretched element is used many times, so its gradient is a sum of many: the `sum`
above runs over the stretched axes, in float64.

Where nothing was stretched, both gradients of `add` are dy itself, not a copy.

Cost: 1 operation and 12 bytes of traffic per float32 element, backward none (add) or twice that (mul).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.ops import checks, sums


class AddCache(NamedTuple):
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    dtype: np.dtype


class MulCache(NamedTuple):
    a: Array
    b: Array


# ---------------------------------------------------------------------------------------------------- reference


def _add_reference(a: Array, b: Array) -> Array:
    return np.asarray(a + b)


def _mul_reference(a: Array, b: Array) -> Array:
    return np.asarray(a * b)


def _sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of stretching an array of this shape: sums over every axis that was stretched."""
    if array.shape == shape:
        return array
    missing = array.ndim - len(shape)
    stretched = [axis for axis in range(array.ndim) if axis < missing or shape[axis - missing] < array.shape[axis]]
    return array.sum(axis=tuple(stretched), dtype=np.float64).astype(array.dtype).reshape(shape)


# ------------------------------------------------------------- Numba, for equal shapes; NumPy does the stretching


@kernel
def _add_kernel(a, b, y):
    for i in prange(y.size):
        y[i] = a[i] + b[i]


@kernel
def _mul_kernel(a, b, y):
    for i in prange(y.size):
        y[i] = a[i] * b[i]


def _add_numba(a: Array, b: Array) -> Array:
    return _flat(_add_kernel, a, b) if a.shape == b.shape else _add_reference(a, b)


def _mul_numba(a: Array, b: Array) -> Array:
    return _flat(_mul_kernel, a, b) if a.shape == b.shape else _mul_reference(a, b)


def _flat(operation: backend.Kernel, a: Array, b: Array) -> Array:
    y = np.empty(a.shape, a.dtype)
    operation(np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1), y.reshape(-1))
    return y


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16)

AXES = 4  # that the kernel for stretched arrays has, after neighbours that move alike are merged


def _add_cuda(a: Array, b: Array) -> Array:
    return _combine_cuda(a, b, multiply=False)


def _mul_cuda(a: Array, b: Array) -> Array:
    return _combine_cuda(a, b, multiply=True)


def _combine_cuda(a: Array, b: Array, *, multiply: bool) -> Array:
    a, b = cuda.contiguous(a), cuda.contiguous(b)
    y = cuda.empty(np.broadcast_shapes(a.shape, b.shape), a.dtype)
    if a.shape == b.shape:
        _cuda.launch("combine", a, b, multiply, y, y.size, threads=cuda.quads(y.size))
    else:
        lengths, a_steps, b_steps = _merged_axes(y.shape, a.shape, b.shape)
        numbers = (y.size, *lengths[1:], *a_steps, *b_steps)
        _cuda.launch("combine_stretched", a, b, multiply, y, *numbers, threads=y.size)
    return y


def _merged_axes(shape: tuple[int, ...], *given: tuple[int, ...]) -> tuple[list[int], ...]:
    """Lengths of AXES axes that stand for those of `shape`, and the steps along them of arrays of given shapes."""
    steps = [_steps(shape, of) for of in given]
    merged: list[list[int]] = []  # length and steps of each axis, from the last to the first
    for axis in reversed(range(len(shape))):
        length, *moves = shape[axis], *(step[axis] for step in steps)
        if merged and moves == [merged[-1][0] * step for step in merged[-1][1:]]:
            merged[-1][0] *= length
        elif length > 1:
            merged.append([length, *moves])
    if len(merged) > AXES:
        raise ValueError(
            f"add and mul on a GPU stretch over at most {AXES} axes, got {' and '.join(map(str, given))}"
        )
    merged += [[1] + [0] * len(given)] * (AXES - len(merged))
    return tuple(list(column) for column in zip(*reversed(merged), strict=True))


def _steps(shape: tuple[int, ...], given: tuple[int, ...]) -> list[int]:
    """How many elements of a contiguous array lie between neighbours along each axis of `shape`."""
    padded = (1,) * (len(shape) - len(given)) + given
    return [0 if length == 1 else math.prod(padded[axis + 1 :]) for axis, length in enumerate(padded)]


def _sum_to_cuda(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape == shape:
        return array
    lengths = list(array.shape)
    padded = (1,) * (len(lengths) - len(shape)) + shape
    stretched = [small < large for small, large in zip(padded, lengths, strict=True)]
    for is_stretched, run in itertools.groupby(range(len(lengths)), stretched.__getitem__):
        if is_stretched:
            first, *_ = axes = list(run)
            last = first + len(axes)
            sizes = (math.prod(lengths[:first]), math.prod(lengths[first:last]), math.prod(lengths[last:]))
            array = sums.over_middle(array, *sizes)
            lengths[first:last] = [1] * len(axes)
    return array.reshape(shape)


# ------------------------------------------------------------------------------------------------------- public


def add(a: Array, b: Array) -> tuple[Array, AddCache]:
    """a + b.

    >>> add(np.array([[1.0], [2.0]]), np.array([10.0, 20.0]))[0]
    array([[11., 21.],
           [12., 22.]])
    """
    _check("add", a, b)
    y = backend.choose(a, numpy=_add_reference, numba=_add_numba, cuda=_add_cuda)(a, b)
    return y, AddCache(a.shape, b.shape, a.dtype)


def add_backward(
    dy: Array, cache: AddCache, *, need: Sequence[bool] = (True, True)
) -> tuple[Array | None, Array | None]:
    """The gradients (da, db); None for one that is not needed."""
    checks.upstream("add_backward", dy, np.broadcast_shapes(cache.a_shape, cache.b_shape), cache.dtype)
    sum_to = backend.choose(dy, numpy=_sum_to, numba=_sum_to, cuda=_sum_to_cuda)
    da = sum_to(dy, cache.a_shape) if need[0] else None
    db = sum_to(dy, cache.b_shape) if need[1] else None
    return da, db


def mul(a: Array, b: Array) -> tuple[Array, MulCache]:
    """a * b.

    >>> mul(np.array([[1.0], [2.0]]), np.array([10.0, 20.0]))[0]
    array([[10., 20.],
           [20., 40.]])
    """
    _check("mul", a, b)
    y = backend.choose(a, numpy=_mul_reference, numba=_mul_numba, cuda=_mul_cuda)(a, b)
    return y, MulCache(a, b)


def mul_backward(
    dy: Array, cache: MulCache, *, need: Sequence[bool] = (True, True)
) -> tuple[Array | None, Array | None]:
    """The gradients (da, db); None for one that is not needed."""
    a, b = cache
    checks.upstream("mul_backward", dy, np.broadcast_shapes(a.shape, b.shape), a.dtype)
    multiply = backend.choose(dy, numpy=_mul_reference, numba=_mul_numba, cuda=_mul_cuda)
    sum_to = backend.choose(dy, numpy=_sum_to, numba=_sum_to, cuda=_sum_to_cuda)
    da = sum_to(multiply(dy, b), a.shape) if need[0] else None
    db = sum_to(multiply(dy, a), b.shape) if need[1] else None
    return da, db


def _check(operator: str, a: Array, b: Array) -> None:
    checks.floating(operator, a=a, b=b)
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(
            f"{operator}: a of shape {a.shape} and b of shape {b.shape} do not fit together; aligned at the last "
            "axis, lengths must be equal or one of them 1"
        ) from None
