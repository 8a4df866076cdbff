"""An array's numbers in another type: float32, float64, or on a GPU bfloat16.

    y[i] = x[i], rounded to the nearest number of the other type        dx[i] = dy[i], in the type of x

Rounding has no derivative; as is usual, the gradient passes as if there had been none.

bfloat16 has the range of float32 and 8 bits of mantissa, one of them implied: three digits. Networks hold their
activations in it for half the memory and traffic; parameters stay float32. The ends of a network cast: its images,
and its scores before the loss.

Cost: 6 bytes of traffic for each element, between float32 and bfloat16. The kernels are in tinyseg/cuda/arrays.cu.
Source: Kalamkar et al., "A study of BFLOAT16 for deep learning training", 2019.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops import checks


class CastCache(NamedTuple):
    shape: tuple[int, ...]
    before: np.dtype
    after: np.dtype


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
    return cuda.astype(x, after), CastCache(x.shape, x.dtype, after)


def cast_backward(dy: Array, cache: CastCache) -> Array:
    """The gradient with respect to x, in the type of x."""
    checks.upstream("cast_backward", dy, cache.shape, cache.after)
    return cuda.astype(dy, cache.before)
