r"""Stochastic gradient descent with momentum.

    g <- gradient + weight_decay * p
    v <- momentum * v + g
    p <- p - lr * v                       or, with nesterov,     p <- p - lr * (g + momentum * v)

v starts at 0. These are PyTorch's formulas: the learning rate multiplies the velocity when it is used, so that a
change of it acts at once (Caffe and the papers multiply the gradient before it enters v; with a constant
rate both are the same). Memory: one array like the parameter.

Sources: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Sutskever, Martens,
Dahl & Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013, eq. 1 to 4.
"""

from typing import Any

from tinyseg import backend, cuda
from tinyseg.backend import Array, kernel, prange
from tinyseg.optim.optimiser import Optimiser, Parameters, check_range
from tinyseg.optim.rows import Rows
from tinyseg.optim.schedules import Schedule

_cuda = cuda.KernelFile(__file__, headers=("rows.cuh",))


class SGD(Optimiser):
    keeps = ("velocity",)

    def __init__(
        self,
        parameters: Parameters,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
    ):
        check_range("SGD", 0, 1, momentum=momentum)
        if nesterov and momentum == 0:
            raise ValueError("SGD: nesterov looks ahead along the momentum; set momentum to more than 0")
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, schedule=schedule)
        self.momentum, self.nesterov = momentum, nesterov

    def _numbers(self, lr: float, weight_decay: float, count: int) -> tuple[float, ...]:
        return lr, self.momentum, weight_decay, self.nesterov

    def _update(self, *arrays_and_numbers: Any) -> None:
        update = backend.choose(arrays_and_numbers[0], numpy=_update_reference, numba=_update_kernel)
        update(*arrays_and_numbers)

    def _update_rows(self, rows: Rows, numbers: Array) -> None:
        _cuda.launch("sgd_update", rows.table, rows.count, numbers, blocks=rows.pieces)


def _update_reference(p, g, v, lr, momentum, decay, nesterov):
    g = g + decay * p
    v[:] = momentum * v + g
    p -= lr * (g + momentum * v if nesterov else v)


@kernel
def _update_kernel(p, g, v, lr, momentum, decay, nesterov):
    for i in prange(p.size):
        slope = g[i] + decay * p[i]
        velocity = momentum * v[i] + slope
        v[i] = velocity
        p[i] -= lr * (slope + momentum * velocity if nesterov else velocity)
