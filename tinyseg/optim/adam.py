r"""Adam, and AdamW, which keeps weight decay out of the moments.

    Adam     g <- gradient + weight_decay * p
    AdamW    g <- gradient,     p <- p - lr * weight_decay * p

    m <- beta1 * m + (1 - beta1) * g
    v <- beta2 * v + (1 - beta2) * g^2
    p <- p - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)

t counts the updates of this parameter from 1; m and v start at 0, and the divisions by 1 - beta^t make up for
it. Memory: two arrays like the parameter. These are PyTorch's formulas, eps outside the square root.

Sources: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1;
Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
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


class Adam(Optimiser):
    keeps = ("mean", "square")
    decoupled = False  # weight decay apart from the gradient

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
    ):
        name = type(self).__name__
        check_range(name, 0, 1, beta1=betas[0], beta2=betas[1])
        check_range(name, 0, math.inf, eps=eps)
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, schedule=schedule)
        self.betas, self.eps = betas, eps

    def _numbers(self, lr: float, weight_decay: float, count: int) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        rate = lr / (1 - beta1**count)
        root = 1 / math.sqrt(1 - beta2**count)
        coupled = 0.0 if self.decoupled else weight_decay
        shrink = 1 - lr * weight_decay if self.decoupled else 1.0
        return rate, root, 1 - beta1, 1 - beta2, self.eps, coupled, shrink

    def _update(self, *arrays_and_numbers: Any) -> None:
        update = backend.choose(arrays_and_numbers[0], numpy=_update_reference, numba=_update_kernel)
        update(*arrays_and_numbers)

    def _update_rows(self, rows: Rows, numbers: Array) -> None:
        _cuda.launch("adam_update", rows.table, rows.count, numbers, blocks=rows.pieces)


class AdamW(Adam):
    decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        schedule: Schedule | None = None,
    ):
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, schedule=schedule)


def _update_reference(p, g, m, v, rate, root, new1, new2, eps, decay, shrink):
    p *= shrink
    g = g + decay * p
    m += new1 * (g - m)
    v += new2 * (np.square(g) - v)
    p -= rate * m / (root * np.sqrt(v) + eps)


@kernel
def _update_kernel(p, g, m, v, rate, root, new1, new2, eps, decay, shrink):
    for i in prange(p.size):
        value = p[i] * shrink
        slope = g[i] + decay * value
        m[i] += new1 * (slope - m[i])
        v[i] += new2 * (slope * slope - v[i])
        p[i] = value - rate * m[i] / (root * np.sqrt(v[i]) + eps)
