"""Arrays in another type."""

import numpy as np
import pytest

from tinyseg import ops


def test_by_hand():
    x = np.array([[1.0, 1 + 2**-25, -0.1]])
    y, cache = ops.cast(x, dtype="float32")
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.array([[1, 1, -13421773 / 2**27]], np.float32))  # 0.1 has 24 bits
    dx = ops.cast_backward(np.array([[0.5, 2, 0.1]], np.float32), cache)
    assert dx.dtype == np.float64
    np.testing.assert_array_equal(dx, [[0.5, 2, 13421773 / 2**27]])


def test_the_same_type_changes_nothing(rng):
    x = rng.standard_normal((3, 5))
    y, cache = ops.cast(x, dtype=np.float64)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(ops.cast_backward(y, cache), x)


def test_errors():
    x = np.ones((2, 3))
    with pytest.raises(TypeError, match="dtype must be float32, float64 or bfloat16, got int32"):
        ops.cast(x, dtype="int32")
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        ops.cast(np.ones(3, int), dtype="float32")
    _, cache = ops.cast(x, dtype="float32")
    with pytest.raises(TypeError, match="dy must be float32 like the forward pass's arrays, got float64"):
        ops.cast_backward(x, cache)


def test_bfloat16_is_for_the_gpu():
    pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by the package ml_dtypes, which is not installed")
    with pytest.raises(TypeError, match=r"bfloat16 is for arrays on a GPU; bring x there with tinyseg\.cuda"):
        ops.cast(np.ones(3), dtype="bfloat16")
