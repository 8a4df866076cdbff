"""An array's numbers in another type: float32, float64, or on a GPU bfloat16.

    y[i] = x[i], rounded to the nearest number of the other type        dx[i] = dy[i], in the type of x

Rounding has no derivative; as is usual, the gradient passes as if there had been none.

bfloat16 has the range of float32 and 8 bits of mantissa, one of them implied: three digits. Networks hold their
activations in it for half the memory and traffic; parameters stay float32. The ends of a network cast: its images,
and its scores before the loss.

Cost: 6 bytes of traffic for each element, between float32 and bfloat16. Source: Kalamkar et al., "A study of
BFLOAT16 for deep learning training", 2019.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array
from tinyseg.ops import checks


class CastCache(NamedTuple):
    shape: tuple[int, ...]
    before: np.dtype
    after: np.dtype


def _cast_reference(x: Array, dtype: np.dtype) -> Array:
    return x.astype(dtype)


# --------------------------------------------------------------------------------------------------------- CUDA

_cuda = cuda.KernelFile(__file__, scalars=["bfloat16"])


def cast_cuda(x: Array, dtype: np.dtype) -> Array:
    """An array on the GPU in another type, or itself if it has this one."""
    if x.dtype == dtype:
        return x
    if "bfloat16" not in (x.dtype.name, dtype.name):
        return x.astype(dtype)
    if x.dtype.name == "bfloat16":
        x = cuda.contiguous(x)
        y = cuda.empty(x.shape, np.dtype(np.float32))
        _cuda.launch("widen", x, y, x.size, threads=cuda.quads(x.size))
        return cast_cuda(y, dtype)
    x = cuda.contiguous(cast_cuda(x, np.dtype(np.float32)))
    y = cuda.empty(x.shape, dtype)
    _cuda.launch("round_off", x, y, x.size, threads=cuda.quads(x.size))
    return y


# ------------------------------------------------------------------------------------------------------- public


def cast(x: Array, *, dtype: np.dtype | type | str) -> tuple[Array, CastCache]:
    """x in another type: "float32", "float64", or "bfloat16" for an array on a GPU. Any shape.

    >>> cast(np.array([0.1]), dtype="float32")[0].dtype
    dtype('float32')
    """
    checks.floating("cast", x=x)
    after = cuda.bfloat16() if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)
    if after.name == "bfloat16" and isinstance(x, np.ndarray):
        raise TypeError("cast: bfloat16 is for arrays on a GPU; bring x there with tinyseg.cuda.to_device(x)")
    if after.name not in ("float32", "float64", "bfloat16"):
        raise TypeError(f"cast: dtype must be float32, float64 or bfloat16, got {after}")
    y = backend.choose(x, numpy=_cast_reference, numba=_cast_reference, cuda=cast_cuda)(x, after)
    return y, CastCache(x.shape, x.dtype, after)


def cast_backward(dy: Array, cache: CastCache) -> Array:
    """The gradient with respect to x, in the type of x."""
    checks.upstream("cast_backward", dy, cache.shape, cache.after)
    back = backend.choose(dy, numpy=_cast_reference, numba=_cast_reference, cuda=cast_cuda)
    return back(dy, cache.before)
