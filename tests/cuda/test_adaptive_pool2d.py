"""The CUDA kernels of adaptive and global pooling."""

from typing import Any

import numpy as np
import pytest

from tinyseg import cuda, ops

CASES = [((2, 5, 7, 3), (2, 3)), ((1, 3, 2, 8), (5, 4)), ((2, 9, 4, 1), (9, 4)), ((3, 6, 11, 33), (1, 1))]


@pytest.mark.parametrize(("shape", "size"), CASES)
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive_pooling(machine, stored, kind, shape, size):
    def both(x, dy):
        y, cache = getattr(ops, f"adaptive_{kind}_pool2d")(x, size)
        return y, getattr(ops, f"adaptive_{kind}_pool2d_backward")(dy, cache)

    dy = machine.numbers(shape[0], *size, shape[3], dtype=stored)
    machine.agree(both, machine.numbers(*shape, dtype=stored), dy)


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_global_pooling(machine, stored, kind):
    def both(x, dy):
        y, cache = getattr(ops, f"global_{kind}_pool2d")(x)
        return y, getattr(ops, f"global_{kind}_pool2d_backward")(dy, cache)

    machine.agree(both, machine.numbers(2, 7, 5, 6, dtype=stored), machine.numbers(2, 1, 1, 6, dtype=stored))


def test_the_first_of_equal_maxima_and_the_first_nan(machine, stored):
    x = np.array([1, 3, 3, 3, 0, 3, np.nan, 1, np.nan, 2, 1, 1], stored).reshape(1, 3, 4, 1)
    machine.agree(lambda x: ops.adaptive_max_pool2d(x, (2, 2))[1].position, x)


def test_an_image_whose_positions_do_not_fit(host):
    with cuda.on(host()):
        x: Any = cuda.to_device(np.zeros((1, 1, 1, 1), np.float32))
        x.values = np.broadcast_to(x.values, (1, 2**16, 2**15, 1))
        with pytest.raises(OverflowError, match="fewer than 2\\^31 pixels, got 65536 x 32768; pool parts"):
            ops.global_max_pool2d(x)
