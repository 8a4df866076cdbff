"""linear on a GPU, which is a 1 x 1 convolution."""

import pytest

from tinyseg import cuda, ops


@pytest.mark.parametrize(("x_shape", "outputs"), [((3,), 5), ((7, 4), 1), ((2, 3, 5, 8), 12), ((130, 3), 70)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(machine, stored, x_shape, outputs, bias):
    def both(x, w, dy, *b):
        y, cache = ops.linear(x, w, *b)
        return y, *ops.linear_backward(dy, cache)

    shapes = [x_shape, (x_shape[-1], outputs), (*x_shape[:-1], outputs)] + [(outputs,)] * bias
    dtypes = [stored, cuda.real(stored), stored] + [cuda.real(stored)] * bias
    arrays = zip(shapes, dtypes, strict=True)
    machine.agree(both, *(machine.numbers(*shape, dtype=dtype) for shape, dtype in arrays))


def test_gradients_that_are_not_needed(machine, dtype):
    def backward(x, w, b):
        y, cache = ops.linear(x, w, b)
        return ops.linear_backward(y, cache, need=(False, True, False))

    machine.agree(backward, *(machine.numbers(*shape, dtype=dtype) for shape in ((4, 3), (3, 5), (5,))))
