"""The CUDA kernels of concat and slice."""

import pytest

from tinyseg import cuda, ops


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        (((2, 3, 5, 1), (2, 3, 5, 4)), -1),
        (((2, 3, 5, 8), (2, 3, 5, 4), (2, 3, 5, 16)), -1),
        (((2, 3, 4), (2, 5, 4)), 1),
        (((3,), (2,)), 0),
    ],
)
def test_concat(machine, stored, shapes, axis):
    def both(*arrays):
        y, cache = ops.concat(arrays, axis=axis)
        return y, *ops.concat_backward(y, cache)

    machine.agree(both, *(machine.numbers(*shape, dtype=stored) for shape in shapes))


def test_a_gradient_that_is_not_needed(machine, stored):
    def backward(a, b):
        y, cache = ops.concat([a, b])
        return ops.concat_backward(y, cache, need=(False, True))

    machine.agree(backward, machine.numbers(3, 5, dtype=stored), machine.numbers(3, 2, dtype=stored))


@pytest.mark.parametrize(
    ("shape", "ranges"),
    [
        ((2, 3, 5, 8), {-1: (2, 6)}),
        ((2, 5, 7, 3), {1: (1, None), 2: (0, -2)}),
        ((7, 3, 5, 3), {0: (2, 5), 1: (1, 2), 2: (1, 4), 3: (0, 2)}),
        ((4,), {}),
        ((3, 2, 2, 2, 3), {0: (1, 3), 4: (0, 2)}),
    ],
)
def test_slice(machine, stored, shape, ranges):
    def both(x):
        y, cache = ops.slice(x, ranges)
        return y, ops.slice_backward(y, cache)

    machine.agree(both, machine.numbers(*shape, dtype=stored))


def test_too_many_axes_that_are_cut(host, rng):
    with cuda.on(host()):
        y, cache = ops.slice(cuda.to_device(rng.standard_normal((2,) * 5)), dict.fromkeys(range(5), (0, 1)))
        with pytest.raises(ValueError, match="at most 4 axes can be cut"):
            ops.slice_backward(y, cache)


def test_reshape_needs_no_kernel(machine, stored):
    def both(x):
        y, cache = ops.reshape(x.transpose(1, 0, 2), (5, -1))
        return y, ops.reshape_backward(y, cache)

    machine.agree(both, machine.numbers(3, 5, 2, dtype=stored))
