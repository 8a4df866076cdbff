r"""RMSprop: each parameter's gradient is divided by a running root mean square of its own.

    g <- gradient + weight_decay * p
    s <- alpha * s + (1 - alpha) * g^2
    v <- momentum * v + g / (sqrt(s) + eps)
    p <- p - lr * v

s and v start at 0. These are PyTorch's formulas (not centred); TensorFlow adds eps under the square root instead.
Memory: two arrays like the parameter.

Source: Tieleman & Hinton, "Lecture 6.5: rmsprop", Coursera, Neural networks for machine learning, 2012.
"""

import math
from typing import Any

import numpy as np

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.optim.optimiser import Optimiser, Parameters, check_range
from tinyseg.optim.rows import Rows
from tinyseg.optim.schedules import Schedule

_cuda = cuda.KernelFile(__file__, headers=("rows.cuh",))


class RMSprop(Optimiser):
    keeps = ("square", "velocity")

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
    ):
        check_range("RMSprop", 0, 1, alpha=alpha, momentum=momentum)
        check_range("RMSprop", 0, math.inf, eps=eps)
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, schedule=schedule)
        self.alpha, self.eps, self.momentum = alpha, eps, momentum

    def _numbers(self, lr: float, weight_decay: float, count: int) -> tuple[float, ...]:
        return lr, 1 - self.alpha, self.eps, self.momentum, weight_decay

    def _update(self, *arrays_and_numbers: Any) -> None:
        update = backend.choose(arrays_and_numbers[0], numpy=_update_reference, numba=_update_kernel)
        update(*arrays_and_numbers)

    def _update_rows(self, rows: Rows, numbers: Array) -> None:
        _cuda.launch("rmsprop_update", rows.table, rows.count, numbers, blocks=rows.pieces)


def _update_reference(p, g, s, v, lr, new, eps, momentum, decay):
    g = g + decay * p
    s += new * (np.square(g) - s)
    v[:] = momentum * v + g / (np.sqrt(s) + eps)
    p -= lr * v


@kernel
def _update_kernel(p, g, s, v, lr, new, eps, momentum, decay):
    for i in prange(p.size):
        slope = g[i] + decay * p[i]
        s[i] += new * (slope * slope - s[i])
        v[i] = momentum * v[i] + slope / (np.sqrt(s[i]) + eps)
        p[i] -= lr * v[i]
