"""The matrix product with a bias, by hand, against PyTorch, and as an adjoint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp


def test_by_hand(backend):
    x, w, b = (
        np.array([[1.0, 2.0], [3.0, -1.0]]),
        np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]),
        np.array([5.0, 0, 0]),
    )
    y, cache = ops.linear(x, w, b)
    np.testing.assert_array_equal(y, [[6, 2, 0], [8, -1, 7]])
    dx, dw, db = ops.linear_backward(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), cache)
    np.testing.assert_array_equal(dx, [[5, -2], [0, 1]])
    np.testing.assert_array_equal(dw, [[1, 3, 2], [2, -1, 4]])
    np.testing.assert_array_equal(db, [1, 1, 2])


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["numpy", "numba"])
@settings(max_examples=40)
@given(
    leading=st.lists(st.integers(1, 5), max_size=3).map(tuple),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_torch(name, leading, sizes, bias, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    (C, O), rng = sizes, np.random.default_rng(seed)
    x, w, dy = rng.standard_normal((*leading, C)), rng.standard_normal((C, O)), rng.standard_normal((*leading, O))
    b = rng.standard_normal(O) if bias else None
    theirs = [None if array is None else torch.tensor(array, requires_grad=True) for array in (x, w, b)]
    expected = torch.nn.functional.linear(theirs[0], theirs[1].T, theirs[2])
    expected.backward(torch.tensor(dy))
    with tinyseg.use(name):
        y, cache = ops.linear(x, w, b)
        gradients = ops.linear_backward(dy, cache)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-13)
    for gradient, other in zip(gradients, theirs, strict=True):
        if other is None:
            assert gradient is None
        else:
            assert gradient.shape == tuple(other.shape)
            np.testing.assert_allclose(gradient, other.grad.numpy(), rtol=1e-12, atol=1e-13)


def test_gradients(backend, rng):
    x, w, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5)), rng.standard_normal(5)
    check_vjp(ops.linear, ops.linear_backward, (x, w, b))
    check_vjp(ops.linear, ops.linear_backward, (x[0, 0], w, None))


def test_adjoint_in_each_factor(backend, rng):
    x, w, dy = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5)), rng.standard_normal((2, 3, 5))
    cache = ops.linear(x, w)[1]
    check_adjoint(lambda x: ops.linear(x, w)[0], lambda dy: ops.linear_backward(dy, cache)[0], x, dy)
    check_adjoint(lambda w: ops.linear(x, w)[0], lambda dy: ops.linear_backward(dy, cache)[1], w, dy)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_backends_agree_on_arrays_that_are_not_contiguous(rng, dtype, rtol):
    x = rng.standard_normal((4, 6, 5)).astype(dtype).transpose(2, 1, 0)[::2]  # (3, 6, 4)
    w, b = rng.standard_normal((7, 4)).astype(dtype).T, rng.standard_normal(14).astype(dtype)[::2]
    dy = rng.standard_normal((3, 6, 7)).astype(dtype)[:, ::-1]
    results = []
    for name in ("numpy", "numba"):
        with tinyseg.use(name):
            y, cache = ops.linear(x, w, b)
            results.append((y, *ops.linear_backward(dy, cache)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def test_is_a_convolution_with_a_kernel_of_one_pixel(backend, rng):
    x, w, b = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((4, 6)), rng.standard_normal(6)
    expected, _ = ops.conv2d(x, w.reshape(1, 1, 4, 6), b)
    np.testing.assert_allclose(ops.linear(x, w, b)[0], expected, rtol=1e-12, atol=1e-13)


def test_only_what_is_needed(backend, rng):
    x, w, b = rng.standard_normal((2, 4)), rng.standard_normal((4, 5)), rng.standard_normal(5)
    y, cache = ops.linear(x, w, b)
    everything = ops.linear_backward(y, cache)
    for k in range(3):
        gradients = ops.linear_backward(y, cache, need=tuple(j == k for j in range(3)))
        np.testing.assert_array_equal(gradients[k], everything[k])
        assert [gradient is None for gradient in gradients] == [j != k for j in range(3)]


def test_errors():
    x, w = np.zeros((2, 4)), np.zeros((4, 5))
    with pytest.raises(
        ValueError, match=r"linear: x must have shape \(2, 3\).*multiplied by w \(3, 5\).*\(2, 4\)"
    ):
        ops.linear(x, np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"linear: w must have the axes \(C, O\), got shape \(4,\)"):
        ops.linear(x, np.zeros(4))
    with pytest.raises(ValueError, match=r"linear: b must have shape \(5,\).*got \(4,\)"):
        ops.linear(x, w, np.zeros(4))
    with pytest.raises(ValueError, match="linear: x must have at least one axis"):
        ops.linear(np.array(1.0), w)
    with pytest.raises(TypeError, match="all arrays must have one type"):
        ops.linear(x, w.astype(np.float32))
    with pytest.raises(ValueError, match=r"linear_backward: dy must have shape \(2, 5\)"):
        ops.linear_backward(x, ops.linear(x, w)[1])
