"""Gradient clipping by the norm of all gradients taken together.

    norm = sqrt(sum over parameters and elements of g^2);     g <- g * min(1, max_norm / norm)

Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
algorithm 1.
"""

import math
from collections.abc import Iterable

import numpy as np

from tinyseg.tape import Tensor


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Shorten all gradients to `max_norm` if they are longer, and return the norm that they had.

    Clipped gradients are new arrays: the old ones may be shared with others. If the norm is infinite or not a
    number the gradients stay as they are; the caller sees it from the result.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_gradients: max_norm must be more than 0, got {max_norm}")
    gradients = [(tensor, tensor.grad) for tensor in parameters if tensor.grad is not None]
    norm = math.sqrt(sum(_sum_of_squares(gradient) for _, gradient in gradients))
    if math.isfinite(norm) and norm > max_norm:
        for tensor, gradient in gradients:
            tensor.grad = gradient * (max_norm / norm)
    return norm


def _sum_of_squares(gradient: np.ndarray) -> float:
    flat = gradient.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))
