"""Gradient clipping by the norm of all gradients taken together.

    norm = sqrt(sum over parameters and elements of g^2);     g <- g * min(1, max_norm / norm)

Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
algorithm 1.
"""

import math
from collections.abc import Iterable

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.optim.rows import rows
from tinyseg.tape import Tensor

_cuda = cuda.KernelFile(__file__, headers=("rows.cuh",))


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Array:
    """Shorten all gradients to `max_norm` if they are longer, and return the norm that they had, shape ().

    Clipped gradients are new arrays: the old ones may be shared with others. If the norm is infinite or not a
    number the gradients stay as they are; the caller sees it from the result. The norm of gradients on a GPU is
    there too, and nobody waits for it.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_gradients: max_norm must be more than 0, got {max_norm}")
    clipped = [(tensor, tensor.grad) for tensor in parameters if tensor.grad is not None]
    if any(cuda.on_gpu(gradient) for _, gradient in clipped):
        return _clip_cuda(clipped, max_norm)
    norm = math.sqrt(sum(_sum_of_squares(gradient) for _, gradient in clipped))
    if math.isfinite(norm) and norm > max_norm:
        for tensor, gradient in clipped:
            tensor.grad = gradient * (max_norm / norm)
    return np.array(norm)


def _sum_of_squares(gradient: np.ndarray) -> float:
    flat = gradient.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def _clip_cuda(clipped: list[tuple[Tensor, Array]], max_norm: float) -> Array:
    dtype = clipped[0][1].dtype
    shortened = [cuda.empty(gradient.shape, dtype) for _, gradient in clipped]
    table = rows([(gradient, short) for (_, gradient), short in zip(clipped, shortened, strict=True)])
    partial, norm = cuda.empty((table.pieces,), np.dtype(np.float64)), cuda.empty((), np.dtype(np.float64))
    factor = cuda.empty((), dtype)
    scalar = "float" if dtype == np.float32 else "double"  # no argument tells it
    _cuda.launch("squares", table.table, table.count, partial, blocks=table.pieces, SCALAR=scalar)
    _cuda.launch("norm_and_factor", partial, table.pieces, max_norm, norm, factor, blocks=1)
    _cuda.launch("shorten", table.table, table.count, factor, blocks=table.pieces)
    for (tensor, _), short in zip(clipped, shortened, strict=True):
        tensor.grad = short
    return norm
