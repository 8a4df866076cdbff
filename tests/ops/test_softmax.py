"""softmax and log_softmax: by hand, against torch, large scores, gradients, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp

BACKENDS = ["numpy", "numba"]
PAIRS = {
    "softmax": (ops.softmax, ops.softmax_backward),
    "log_softmax": (ops.log_softmax, ops.log_softmax_backward),
}


@st.composite
def cases(draw):
    shape = (*draw(st.lists(st.integers(1, 5), max_size=3)), draw(st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape) * draw(st.sampled_from([0.1, 1, 100])) + draw(st.sampled_from([0, 700]))
    return (np.asfortranarray(x) if draw(st.booleans()) else x), rng.standard_normal(shape)


def test_by_hand(backend):
    x = np.log(np.array([[1.0, 2, 5], [3, 3, 2]]))
    y, cache = ops.softmax(x)
    np.testing.assert_allclose(y, [[1 / 8, 2 / 8, 5 / 8], [3 / 8, 3 / 8, 2 / 8]], rtol=1e-15)
    # sum of dy y = 1, then 0
    dx = ops.softmax_backward(np.array([[1.0, 1, 1], [2, -2, 0]]), cache)
    np.testing.assert_allclose(dx, [[0, 0, 0], [6 / 8, -6 / 8, 0]], atol=1e-15)
    y, cache = ops.log_softmax(x)
    np.testing.assert_allclose(y, np.log([[1 / 8, 2 / 8, 5 / 8], [3 / 8, 3 / 8, 2 / 8]]), rtol=1e-14)
    dx = ops.log_softmax_backward(np.array([[8.0, 0, 0], [1, 2, -3]]), cache)
    np.testing.assert_allclose(dx, [[8 - 1, -2, -5], [1, 2, -3]], rtol=1e-14)


@pytest.mark.oracle
@pytest.mark.parametrize("operator", PAIRS)
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=50)
@given(case=cases())
def test_against_torch(torch, name, operator, case):
    x, dy = case
    forward, backward = PAIRS[operator]
    with tinyseg.use(name):
        y, cache = forward(x)
        dx = backward(dy, cache)
    x = torch.tensor(x, requires_grad=True)
    expected = getattr(torch, operator)(x, dim=-1)
    (expected_dx,) = torch.autograd.grad(expected, x, torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(dx, expected_dx.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("operator", PAIRS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (7,), (1, 2, 1)])
def test_gradient(backend, rng, operator, shape):
    check_vjp(*PAIRS[operator], 3 * rng.standard_normal(shape))


@pytest.mark.parametrize("operator", PAIRS)
def test_backends_agree_in_float32(rng, operator):
    x, dy = rng.standard_normal((2, 3, 17, 19, 21), dtype=np.float32)
    x = 10 * x + 1000
    forward, backward = PAIRS[operator]
    results = []
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = forward(x)
            results.append((y, backward(dy, cache)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


def test_large_scores_in_float32(backend):
    x = np.array([1e6, 1e6 - 1, -1e30, -np.inf], np.float32)
    y, _ = ops.softmax(x)
    np.testing.assert_allclose(y, np.array([np.e, 1, 0, 0]) / (np.e + 1), rtol=1e-6)
    log_y, _ = ops.log_softmax(x[:3])
    np.testing.assert_allclose(log_y, [-0.31326169, -1.31326169, -1e30], rtol=1e-6)


def test_nan_stays_in_its_pixel(backend):
    for forward, _ in PAIRS.values():
        for position in (0, 1, 2):
            x = np.zeros((2, 3))
            x[1, position] = np.nan
            y, _ = forward(x)
            assert np.isnan(y[1]).all() and not np.isnan(y[0]).any()


def test_a_constant_changes_nothing_and_gets_no_gradient(backend, rng):
    x, dy = rng.standard_normal((2, 4, 5, 6))
    for forward, backward in PAIRS.values():
        y, cache = forward(x)
        np.testing.assert_allclose(forward(x + 3)[0], y, atol=1e-14)
        np.testing.assert_allclose(backward(dy, cache).sum(-1), 0, atol=1e-14)


def test_errors():
    for name, (forward, backward) in PAIRS.items():
        with pytest.raises(TypeError, match=f"{name}: x must be float32 or float64, got int64"):
            forward(np.array([1, 2]))
        with pytest.raises(ValueError, match="got a single number"):
            forward(np.array(1.0))
        with pytest.raises(ValueError, match="x is empty"):
            forward(np.ones((3, 0)))
        _, cache = forward(np.ones((3, 2)))
        with pytest.raises(ValueError, match=r"dy must have shape \(3, 2\)"):
            backward(np.ones((2, 3)), cache)
