"""Blurring and differences on a GPU, which are separable maps."""

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
