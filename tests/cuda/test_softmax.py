"""The CUDA kernels of softmax and log_softmax."""

import numpy as np
import pytest

from tinyseg import ops

SHAPES = [(1,), (7, 1), (41, 2), (2, 3, 5, 21), (3, 32), (5, 33), (2, 150)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(machine, stored, name, shape):
    def both(x, dy):
        y, cache = getattr(ops, name)(x)
        return y, getattr(ops, f"{name}_backward")(dy, cache)

    machine.agree(both, (5 * machine.numbers(*shape)).astype(stored), machine.numbers(*shape, dtype=stored))


def test_large_scores_and_nan(machine, stored):
    x = np.array([[1e4, 1e4 - 1, -1e4], [0, np.nan, 1], [-np.inf, 0, 1]], stored)
    machine.agree(lambda x: (ops.softmax(x)[0], ops.log_softmax(x)[0]), x)
