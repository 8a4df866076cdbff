"""ReLU and its leaky kind, by hand, against PyTorch, and by their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp, spaced

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


def test_by_hand(backend):
    x = np.array([-2.0, -0.0, 0.0, 3.0])
    y, cache = ops.relu(x)
    np.testing.assert_array_equal(y, [0, 0, 0, 3])
    np.testing.assert_array_equal(ops.relu_backward(np.array([5.0, 6.0, 7.0, 8.0]), cache), [0, 0, 0, 8])

    y, cache = ops.leaky_relu(x, slope=0.25)
    np.testing.assert_array_equal(y, [-0.5, 0, 0, 3])
    np.testing.assert_array_equal(ops.leaky_relu_backward(np.array([4.0, 4.0, 8.0, 8.0]), cache), [1, 1, 2, 8])


def test_infinity_and_nan(backend):
    x = np.array([-np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(ops.relu(x)[0], [0, np.inf, np.nan])
    np.testing.assert_array_equal(ops.leaky_relu(x)[0], [-np.inf, np.inf, np.nan])


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["numpy", "numba"])
@settings(max_examples=50)
@given(shape=SHAPES, seed=st.integers(0, 1000), slope=st.floats(0.01, 2.0), leaky=st.booleans())
def test_agrees_with_torch(name, shape, seed, slope, leaky):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    x, dy = np.asarray(x), np.asarray(dy)
    theirs = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.leaky_relu(theirs, slope) if leaky else torch.relu(theirs)
    expected.backward(torch.tensor(dy))

    with tinyseg.use(name):
        y, cache = ops.leaky_relu(x, slope=slope) if leaky else ops.relu(x)
        dx = (ops.leaky_relu_backward if leaky else ops.relu_backward)(dy, cache)
    assert y.shape == dx.shape == shape
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-15)
    np.testing.assert_allclose(dx, theirs.grad.numpy(), rtol=1e-15)


def test_gradients(backend):
    x = spaced((2, 3, 5, 4))
    check_vjp(ops.relu, ops.relu_backward, x)
    check_vjp(ops.leaky_relu, ops.leaky_relu_backward, x, slope=0.3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backends_agree_on_arrays_that_are_not_contiguous(rng, dtype):
    x = rng.standard_normal((5, 4, 6)).astype(dtype).transpose(2, 0, 1)[:, ::2]
    dy = rng.standard_normal(x.shape).astype(dtype)[::-1]
    results = {}
    for name in ("numpy", "numba"):
        with tinyseg.use(name):
            y, cache = ops.leaky_relu(x, slope=0.1)
            z, relu_cache = ops.relu(x)
            dx, dz = ops.leaky_relu_backward(dy, cache), ops.relu_backward(dy, relu_cache)
            results[name] = (y, z, dx, dz)
    for one, other in zip(results["numpy"], results["numba"], strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_array_equal(one, other)


def test_laws(backend, rng):
    x = rng.standard_normal((3, 5))
    positive, negative = ops.relu(x)[0], ops.relu(-x)[0]
    np.testing.assert_array_equal(positive - negative, x)
    np.testing.assert_array_equal(ops.relu(positive)[0], positive)
    np.testing.assert_allclose(ops.leaky_relu(x, slope=0.2)[0], positive - 0.2 * negative, rtol=1e-15)


def test_errors():
    x = np.zeros((2, 3))
    _, cache = ops.relu(x)
    with pytest.raises(TypeError, match=r"relu: x must be float32 or float64, got int64; convert it"):
        ops.relu(np.zeros(3, np.int64))
    with pytest.raises(TypeError, match="relu: x must be an array, got list"):
        ops.relu([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"relu: x is empty, its shape is \(0, 3\)"):
        ops.relu(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"relu_backward: dy must have shape \(2, 3\).*got \(3, 2\)"):
        ops.relu_backward(np.zeros((3, 2)), cache)
    with pytest.raises(TypeError, match="relu_backward: dy must be float64"):
        ops.relu_backward(np.zeros((2, 3), np.float32), cache)
    with pytest.raises(ValueError, match="leaky_relu: slope must be more than 0, got 0; for slope 0 use relu"):
        ops.leaky_relu(x, slope=0)
