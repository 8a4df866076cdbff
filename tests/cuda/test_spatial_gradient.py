"""Blurring, differences and their magnitude on a GPU."""

import pytest

from tinyseg import ops


def test_gaussian_blur(machine, dtype):
    def both(x, dy):
        y, cache = ops.gaussian_blur(x, sigma=1.3)
        return y, ops.gaussian_blur_backward(dy, cache)

    machine.agree(both, machine.numbers(2, 5, 7, 3, dtype=dtype), machine.numbers(2, 5, 7, 3, dtype=dtype))


def test_spatial_gradient(machine, dtype):
    def both(x, dy):
        y, cache = ops.spatial_gradient(x)
        return y, ops.spatial_gradient_backward(dy, cache)

    machine.agree(both, machine.numbers(2, 5, 4, 3, dtype=dtype), machine.numbers(2, 5, 4, 6, dtype=dtype))


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 1, 1, 1), (1, 9, 8, 21), (2, 3, 1, 33)])
def test_gradient_magnitude(machine, dtype, shape):
    def both(x, dy):
        y, cache = ops.gradient_magnitude(x, smoothing=0.1)
        return y, ops.gradient_magnitude_backward(dy, cache)

    machine.agree(both, machine.numbers(*shape, dtype=dtype), machine.numbers(*shape, dtype=dtype))


def test_no_gradient_anywhere(machine, dtype):
    def both(x, dy):
        y, cache = ops.gradient_magnitude(x)
        return y, ops.gradient_magnitude_backward(dy, cache)

    x = machine.numbers(1, 1, 1, 3, dtype=dtype).repeat(4, axis=1).repeat(5, axis=2)
    y, dx = machine.agree(both, x, machine.numbers(1, 4, 5, 3, dtype=dtype))
    assert not y.any() and not dx.any()
