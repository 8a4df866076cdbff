r"""Joining arrays along an axis, and cutting ranges out of one.

    concat    y[.., o_k + c, ..] = x_k[.., c, ..],    o_k = the lengths of x_0 .. x_{k-1}, added up
    slice     y[i, j, ..] = x[start_0 + i, start_1 + j, ..]

Backward. Each output element copies one input element, so each gradient goes back to where its element came
from: concat's gradients are slices of dy, and slice's gradient is dy in an array of zeros.

    dx_k[.., c, ..] = dy[.., o_k + c, ..]              dx[start_0 + i, start_1 + j, ..] = dy[i, j, ..],  else 0

Both only move memory: 8 bytes of traffic per float32 element, one way and back.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks

Range = tuple[int | None, int | None]


class ConcatCache(NamedTuple):
    shapes: tuple[tuple[int, ...], ...]
    axis: int  # 0 or more
    dtype: np.dtype


class SliceCache(NamedTuple):
    shape: tuple[int, ...]  # of x
    dtype: np.dtype
    starts: tuple[int, ...]  # one for each axis
    stops: tuple[int, ...]


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, scalars=cuda.WITH_BFLOAT16, WIDTH=(1, 4))

AXES = 4  # that the kernel for slices has, after axes that stay whole are merged


def _join_cuda(arrays: Sequence[Array], axis: int) -> Array:
    shape = list(arrays[0].shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    y = cuda.empty(shape, arrays[0].dtype)
    rows, row = math.prod(shape[:axis]), math.prod(shape[axis:])
    first = 0
    for x in arrays:
        length = x.size // rows
        _copy_rows(cuda.contiguous(x), (0, length), y, (first, row), rows, length)
        first += length
    return y


def _cut_cuda(dy: Array, axis: int, start: int, stop: int) -> Array:
    shape = (*dy.shape[:axis], stop - start, *dy.shape[axis + 1 :])
    dx = cuda.empty(shape, dy.dtype)
    rows, row, inner = math.prod(shape[:axis]), math.prod(dy.shape[axis:]), math.prod(shape[axis + 1 :])
    length = (stop - start) * inner
    _copy_rows(cuda.contiguous(dy), (start * inner, row), dx, (0, length), rows, length)
    return dx


def _copy_rows(
    x: Array, x_place: tuple[int, int], y: Array, y_place: tuple[int, int], rows: int, length: int
) -> None:
    """Copy rows. places: the first element, and how far it is from one row to the next."""
    width = 4 if all(number % 4 == 0 for number in (*x_place, *y_place, length)) else 1
    (x_first, x_step), (y_first, y_step) = ([number // width for number in place] for place in (x_place, y_place))
    numbers = (rows, length // width)
    threads = rows * length // width
    _cuda.launch("copy_rows", x, x_first, x_step, y, y_first, y_step, *numbers, threads=threads, WIDTH=width)


def _surround_cuda(dy: Array, cache: SliceCache) -> Array:
    merged: list[list[int]] = []  # length, start and stop of each axis, from the last to the first
    for axis in zip(reversed(cache.shape), reversed(cache.starts), reversed(cache.stops), strict=True):
        if merged and merged[-1][1:] == [0, merged[-1][0]]:  # the axis behind it is whole
            merged[-1] = [merged[-1][0] * number for number in axis]
        else:
            merged.append(list(axis))
    if len(merged) > AXES:
        raise ValueError(f"slice_backward: on a GPU at most {AXES} axes can be cut, x has shape {cache.shape}")
    merged += [[1, 0, 1]] * (AXES - len(merged))
    lengths, starts, stops = zip(*reversed(merged), strict=True)
    dx = cuda.empty(cache.shape, dy.dtype)
    kept = [stop - start for start, stop in zip(starts, stops, strict=True)]
    _cuda.launch("surround", cuda.contiguous(dy), dx.size, *lengths[1:], *kept, *starts, dx, threads=dx.size)
    return dx


# ------------------------------------------------------------------------------------------------------- concat


def concat(arrays: Sequence[Array], *, axis: int = -1) -> tuple[Array, ConcatCache]:
    """Join arrays along an axis, by default the channels. All other axes must have equal lengths.

    >>> concat([np.array([[1.0], [2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])])[0]
    array([[1., 3., 4.],
           [2., 5., 6.]])
    """
    arrays = list(arrays)
    if not arrays:
        raise ValueError("concat: there are no arrays to join; pass a list of at least one")
    named: dict[str, Any] = {f"arrays[{k}]": x for k, x in enumerate(arrays)}
    checks.floating("concat", **named)
    axis = _axis("concat", axis, arrays[0])
    for k, x in enumerate(arrays):
        expected = list(arrays[0].shape)
        expected[axis] = x.shape[axis] if axis < x.ndim else 1
        why = f"that of arrays[0] but for axis {axis}, along which they are joined; crop or pad the larger"
        checks.shape("concat", f"arrays[{k}]", x, expected, why)
    join = backend.choose(arrays[0], numpy=np.concatenate, numba=np.concatenate, cuda=_join_cuda)
    y = join(arrays, axis)
    return y, ConcatCache(tuple(x.shape for x in arrays), axis, y.dtype)


def concat_backward(
    dy: Array, cache: ConcatCache, *, need: Sequence[bool] | None = None
) -> tuple[Array | None, ...]:
    """The gradients, one for each array that was joined; None for one that is not needed."""
    shapes, axis, dtype = cache
    length = sum(shape[axis] for shape in shapes)
    checks.upstream("concat_backward", dy, shapes[0][:axis] + (length,) + shapes[0][axis + 1 :], dtype)
    need = need or [True] * len(shapes)
    cut = backend.choose(dy, numpy=_cut, numba=_cut, cuda=_cut_cuda)
    gradients, start = [], 0
    for shape, wanted in zip(shapes, need, strict=True):
        gradients.append(cut(dy, axis, start, start + shape[axis]) if wanted else None)
        start += shape[axis]
    return tuple(gradients)


def _cut(dy: Array, axis: int, start: int, stop: int) -> Array:
    part = (np.s_[:],) * axis + (np.s_[start:stop],)
    return np.ascontiguousarray(dy[part])


# -------------------------------------------------------------------------------------------------------- slice


def slice(x: Array, ranges: Mapping[int, Range]) -> tuple[Array, SliceCache]:
    """Cut out ranges: {axis: (start, stop)}. Axes that are not named stay whole.

    As in Python, negative numbers count from the end of the axis, and None stands for its beginning or end; but
    a range that leaves the axis, or is empty, is an error.

    >>> slice(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), {0: (1, None), -1: (0, -1)})[0]
    array([[4., 5.]])
    """
    checks.floating("slice", x=x)
    starts, stops = [0] * x.ndim, list(x.shape)
    for name, (start, stop) in ranges.items():
        axis = _axis("slice", name, x)
        length = x.shape[axis]
        first = 0 if start is None else start + (length if start < 0 else 0)
        last = length if stop is None else stop + (length if stop < 0 else 0)
        if not 0 <= first < last <= length:
            raise ValueError(
                f"slice: the range ({start}, {stop}) of axis {name} must keep at least one of its {length} "
                f"elements and stay inside; x has shape {x.shape}"
            )
        starts[axis], stops[axis] = first, last
    cache = SliceCache(x.shape, x.dtype, tuple(starts), tuple(stops))
    contiguous = backend.choose(x, numpy=np.ascontiguousarray, numba=np.ascontiguousarray, cuda=cuda.contiguous)
    return contiguous(x[_part(cache)]), cache


def slice_backward(dy: Array, cache: SliceCache) -> Array:
    """The gradient with respect to `x`: dy, with zeros around it."""
    shape = tuple(stop - start for start, stop in zip(cache.starts, cache.stops, strict=True))
    checks.upstream("slice_backward", dy, shape, cache.dtype)
    return backend.choose(dy, numpy=_surround, numba=_surround, cuda=_surround_cuda)(dy, cache)


def _surround(dy: Array, cache: SliceCache) -> Array:
    dx = np.zeros_like(dy, shape=cache.shape)
    dx[_part(cache)] = dy
    return dx


def _part(cache: SliceCache) -> tuple:
    return tuple(np.s_[start:stop] for start, stop in zip(cache.starts, cache.stops, strict=True))


def _axis(operator: str, axis: int, x: Array) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{operator}: there is no axis {axis}, the arrays have {x.ndim} axes, shape {x.shape}")
    return axis % x.ndim
