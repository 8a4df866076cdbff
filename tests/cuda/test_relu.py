"""The CUDA kernels of relu and leaky_relu."""

import numpy as np
import pytest

from tinyseg import ops


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 5, 41)])
def test_relu(machine, stored, shape):
    def both(x, dy):
        y, cache = ops.relu(x)
        return y, ops.relu_backward(dy, cache)

    machine.agree(both, machine.numbers(*shape, dtype=stored), machine.numbers(*shape, dtype=stored))


def test_leaky_relu(machine, stored):
    def both(x, dy):
        y, cache = ops.leaky_relu(x, slope=0.3)
        return y, ops.leaky_relu_backward(dy, cache)

    machine.agree(both, machine.numbers(11, 13, dtype=stored), machine.numbers(11, 13, dtype=stored))


def test_infinity_and_nan(machine, stored):
    x = np.array([-np.inf, np.inf, np.nan, -0.0, 0.0], stored)
    machine.agree(lambda x: ops.relu(x)[0], x)
    machine.agree(lambda x: ops.leaky_relu(x)[0], x)


def test_an_array_that_is_not_contiguous(machine, stored):
    x = machine.numbers(6, 5, 4, dtype=stored)
    machine.agree(lambda x: ops.relu(x.transpose(2, 0, 1)[:, ::2])[0], x)
    machine.agree(lambda x: ops.relu(x[1:, 1:])[0], x)
