"""The CUDA kernels of the encoding layer."""

import numpy as np
import pytest

from tinyseg import ops

# The gradients of the scales are sums of numbers that are a hundred times as large.
TOLERANCE = {np.dtype(np.float32): 1e-3}


@pytest.mark.parametrize(
    ("shape", "K"),
    [
        ((1, 1, 1, 1), 1),
        ((2, 5, 7, 3), 4),
        ((3, 2, 4, 33), 2),
        ((1, 6, 9, 21), 33),  # more codewords than a tile has
        ((2, 13, 41, 5), 3),  # three chunks of pixels
    ],
)
def test_encoding(machine, dtype, shape, K):
    def both(x, codewords, scales, dy):
        y, cache = ops.encoding(x, codewords, scales)
        return y, *ops.encoding_backward(dy, cache)

    N, _, _, C = shape
    arrays = (
        machine.numbers(*shape),
        machine.numbers(K, C),
        machine.rng.uniform(-1, 0, K),
        machine.numbers(N, C, K),
    )
    machine.agree(both, *(array.astype(dtype) for array in arrays), tolerance=TOLERANCE)


def test_far_from_the_origin(machine):
    """The residuals are taken before anything is multiplied: an offset of all costs no digits."""
    x, codewords = (machine.numbers(*shape) + 1000 for shape in ((1, 4, 5, 6), (3, 6)))
    arrays = (np.round(array * 1024) / 1024 for array in (x, codewords))  # numbers that float32 has, too

    def both(x, codewords, scales, dy):
        y, cache = ops.encoding(x, codewords, scales)
        return y, *ops.encoding_backward(dy, cache)

    more = (machine.rng.uniform(-1, 0, 3), machine.numbers(1, 6, 3))
    machine.agree(both, *(array.astype(np.float32) for array in (*arrays, *more)), tolerance=TOLERANCE)


def test_some_gradients(machine):
    def one(x, codewords, scales, dy):
        return ops.encoding_backward(dy, ops.encoding(x, codewords, scales)[1], need=(False, True, False))

    dx, dd, ds = machine.agree(
        one, machine.numbers(1, 3, 4, 5), machine.numbers(2, 5), machine.numbers(2), machine.numbers(1, 5, 2)
    )
    assert dx is None and ds is None and dd is not None


def test_arrays_that_are_not_contiguous(machine, dtype):
    def both(x, codewords, scales, dy):
        y, cache = ops.encoding(x.transpose(0, 2, 1, 3), codewords.transpose(1, 0), scales)
        return y, *ops.encoding_backward(dy.transpose(0, 2, 1), cache)

    arrays = (machine.numbers(1, 4, 3, 2), machine.numbers(2, 3), machine.numbers(3), machine.numbers(1, 3, 2))
    machine.agree(both, *(array.astype(dtype) for array in arrays))
