"""Reshaping by hand and as its own adjoint."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp
from tinyseg.tape import Tensor


def test_by_hand(backend):
    x = np.arange(12.0).reshape(1, 2, 3, 2)  # N H W C
    y, cache = ops.reshape(x, (1, -1))
    np.testing.assert_array_equal(y, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
    dx = ops.reshape_backward(2 * y, cache)
    np.testing.assert_array_equal(dx[0, 1], [[12, 14], [16, 18], [20, 22]])


def test_order_of_a_non_contiguous_array():
    x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).T
    y, cache = ops.reshape(x, (2, 3))
    np.testing.assert_array_equal(y, [[1, 4, 2], [5, 3, 6]])
    np.testing.assert_array_equal(ops.reshape_backward(y, cache), x)


@pytest.mark.parametrize("shape", [(4, 15), (-1,), (2, 5, -1), (60, 1)])
def test_gradients(shape, rng):
    x = rng.standard_normal((3, 4, 5))
    y, cache = ops.reshape(x, shape)
    check_adjoint(
        lambda a: ops.reshape(a, shape)[0],
        lambda b: ops.reshape_backward(b, cache),
        x,
        rng.standard_normal(y.shape),
    )
    check_vjp(ops.reshape, ops.reshape_backward, (x,), shape=shape)


def test_on_the_tape(rng):
    x = Tensor(rng.standard_normal((2, 3)), requires_grad=True)
    F.reshape(x, (3, 2)).backward(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    np.testing.assert_array_equal(x.grad, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("shape", [(5, 2), (-1, -1), (4, -1), (-2, -3), (0, -1)])
def test_errors(shape):
    with pytest.raises(ValueError, match=r"reshape: 6 elements in the shape \(2, 3\) do not fit"):
        ops.reshape(np.zeros((2, 3)), shape)
    with pytest.raises(ValueError, match=r"reshape_backward: dy must have shape \(6,\)"):
        ops.reshape_backward(np.zeros(5), ops.reshape(np.zeros((2, 3)), (6,))[1])
