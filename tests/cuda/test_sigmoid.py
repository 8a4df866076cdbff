"""The CUDA kernels of sigmoid and tanh."""

import numpy as np
import pytest

from tinyseg import ops


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 5, 41)])
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_s_shaped_functions(machine, stored, name, shape):
    def both(x, dy):
        y, cache = getattr(ops, name)(x)
        return y, getattr(ops, f"{name}_backward")(dy, cache)

    machine.agree(both, (3 * machine.numbers(*shape)).astype(stored), machine.numbers(*shape, dtype=stored))


def test_infinity_and_nan(machine, stored):
    x = np.array([-np.inf, -1000, np.nan, 1000, np.inf], stored)
    machine.agree(lambda x: (ops.sigmoid(x)[0], ops.tanh(x)[0]), x)
