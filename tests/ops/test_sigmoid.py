"""Sigmoid and tanh, by hand, against PyTorch, far from zero, and by their laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp

PAIRS = {"sigmoid": (ops.sigmoid, ops.sigmoid_backward), "tanh": (ops.tanh, ops.tanh_backward)}
SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


def test_by_hand(backend):
    x = np.array([-math.log(3), 0.0, math.log(3)])  # exp(x) = 1/3, 1, 3
    dy = np.array([16.0, 8.0, -16.0])
    y, cache = ops.sigmoid(x)
    np.testing.assert_allclose(y, [0.25, 0.5, 0.75], rtol=1e-15)
    np.testing.assert_allclose(ops.sigmoid_backward(dy, cache), [3, 2, -3], rtol=1e-14)
    y, cache = ops.tanh(x)
    np.testing.assert_allclose(y, [-0.8, 0, 0.8], rtol=1e-15)
    np.testing.assert_allclose(ops.tanh_backward(dy, cache), [16 * 0.36, 8, -16 * 0.36], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_zero(backend, dtype):
    """No overflow, and small values keep their relative precision."""
    x = np.array([-np.inf, -1000, -80, 80, 1000, np.inf, np.nan], dtype)
    y = ops.sigmoid(x)[0]
    np.testing.assert_array_equal(y[[0, 1, 3, 4, 5, 6]], np.array([0, 0, 1, 1, 1, np.nan], dtype))
    np.testing.assert_allclose(y[2], math.exp(-80), rtol=20 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(ops.tanh(x)[0], np.array([-1, -1, -1, 1, 1, 1, np.nan], dtype))
    small = np.array([1e-20, -1e-20], dtype)
    np.testing.assert_array_equal(ops.tanh(small)[0], small)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("function", PAIRS)
@settings(max_examples=30)
@given(shape=SHAPES, seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_agrees_with_torch(name, function, shape, seed, scale):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    rng = np.random.default_rng(seed)
    x, dy = np.asarray(scale * rng.standard_normal(shape)), np.asarray(rng.standard_normal(shape))
    theirs = torch.tensor(x, requires_grad=True)
    expected = getattr(torch, function)(theirs)
    expected.backward(torch.tensor(dy))
    op, op_backward = PAIRS[function]
    with tinyseg.use(name):
        y, cache = op(x)
        dx = op_backward(dy, cache)
    assert y.shape == dx.shape == shape
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(dx, theirs.grad.numpy(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("function", PAIRS)
def test_gradients(backend, rng, function):
    check_vjp(*PAIRS[function], rng.standard_normal((2, 3, 5, 4)))


@pytest.mark.parametrize("function", PAIRS)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_backends_agree_on_arrays_that_are_not_contiguous(rng, function, dtype, rtol):
    x = rng.standard_normal((5, 4, 6)).astype(dtype).transpose(2, 0, 1)[:, ::2]
    dy = rng.standard_normal(x.shape).astype(dtype)[::-1]
    op, op_backward = PAIRS[function]
    results = []
    for name in ("numpy", "numba"):
        with tinyseg.use(name):
            y, cache = op(x)
            results.append((y, op_backward(dy, cache)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def test_laws(backend, rng):
    x = rng.standard_normal((3, 5)) * 3
    np.testing.assert_allclose(ops.sigmoid(x)[0] + ops.sigmoid(-x)[0], 1, rtol=1e-15)
    np.testing.assert_allclose(ops.tanh(-x)[0], -ops.tanh(x)[0], rtol=1e-15)
    np.testing.assert_allclose(ops.tanh(x)[0], 2 * ops.sigmoid(2 * x)[0] - 1, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("function", PAIRS)
def test_errors(function):
    op, op_backward = PAIRS[function]
    with pytest.raises(TypeError, match=f"{function}: x must be float32 or float64, got int64"):
        op(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=f"{function}: x is empty"):
        op(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=rf"{function}_backward: dy must have shape \(2, 3\).*got \(3, 2\)"):
        op_backward(np.zeros((3, 2)), op(np.zeros((2, 3)))[1])
