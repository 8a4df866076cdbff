"""The CUDA kernels of add and mul, and of the sums that their gradients need."""

import numpy as np
import pytest

from tinyseg import cuda, ops
from tinyseg.ops import sums

SHAPES = [
    ((), ()),
    ((5, 7), (5, 7)),
    ((2, 3, 5, 9), (2, 3, 5, 1)),
    ((2, 1, 1, 9), (2, 3, 5, 9)),
    ((2, 3, 5, 9), (9,)),
    ((2, 3, 5, 9), ()),
    ((2, 3, 1, 9), (1, 3, 5, 1)),
    ((3, 1), (1, 4)),
    ((3, 1, 2, 1, 5), (3, 4, 2, 1, 5)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
@pytest.mark.parametrize("name", ["add", "mul"])
def test_arithmetic(machine, stored, name, a_shape, b_shape):
    def both(a, b, dy):
        y, cache = getattr(ops, name)(a, b)
        return y, *getattr(ops, f"{name}_backward")(dy, cache)

    shapes = (a_shape, b_shape, np.broadcast_shapes(a_shape, b_shape))
    machine.agree(both, *(machine.numbers(*shape, dtype=stored) for shape in shapes))


def test_a_gradient_that_is_not_needed(machine, stored):
    def backward(a, b):
        y, cache = ops.mul(a, b)
        return ops.mul_backward(y, cache, need=(False, True))

    machine.agree(backward, machine.numbers(3, 5, dtype=stored), machine.numbers(5, dtype=stored))


def test_too_many_axes(host):
    a, b = np.zeros((1, 2, 1, 2, 1, 2)), np.zeros((2, 1, 2, 1, 2, 1))
    with (
        cuda.on(host()),
        pytest.raises(ValueError, match=r"stretch over at most 4 axes, got \(1, 2, 1, 2, 1, 2\) and"),
    ):
        ops.add(cuda.to_device(a), cuda.to_device(b))


@pytest.mark.parametrize(
    ("sets", "length", "channels"), [(1, 1, 1), (1, 5000, 1), (37, 19, 1), (3, 301, 5), (1, 700, 70), (2, 1, 130)]
)
def test_sums_over_the_middle(machine, stored, sets, length, channels):
    x = machine.numbers(sets, length, channels, dtype=stored)

    def by_hand_and_on_the_gpu(x):
        if isinstance(x, np.ndarray):
            return x.sum(axis=1) / 3
        return sums.over_middle(x, sets, length, channels, factor=1 / 3)

    machine.agree(by_hand_and_on_the_gpu, x)


def test_chunks_cover_a_long_column():
    assert sums.split(1, 2**20, 64) == (64, 1, sums.BLOCKS)
    assert sums.split(8, 2**16, 64)[2] == sums.BLOCKS // 8
    assert sums.split(1, 3, 64)[2] == 1
