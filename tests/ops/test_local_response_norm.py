"""local_response_norm: by hand, against torch, the AlexNet paper's formula, gradients, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp

BACKENDS = ["numpy", "numba"]


@st.composite
def cases(draw):
    """x N H W C, the options and dy."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3, st.integers(1, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape) * draw(st.sampled_from([0.1, 1, 20]))
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    options = {
        "size": draw(st.integers(1, 12)),
        "alpha": draw(st.sampled_from([1e-4, 0.1, 2.0])),
        "beta": draw(st.sampled_from([0.5, 0.75, 1.0, 2.0])),
        "k": draw(st.sampled_from([0.5, 1.0, 2.0])),
    }
    return x, options, rng.standard_normal(shape)


def test_by_hand(backend):
    # Window of 3, alpha/size = 1, beta = 1: s = 1 + (1 + 4, 1 + 4 + 9, 4 + 9).
    x = np.array([[1.0, 2, 3]])
    y, cache = ops.local_response_norm(x, size=3, alpha=3, beta=1, k=1)
    np.testing.assert_allclose(y, [[1 / 6, 2 / 15, 3 / 14]], rtol=1e-15)
    dx = ops.local_response_norm_backward(np.array([[36.0, 0, 0]]), cache)
    # y[0] = x0 / (1 + x0² + x1²): the derivatives are 1/6 - 2/36, -2 * 2/36, 0.
    np.testing.assert_allclose(dx, [[6 - 2, -4, 0]], rtol=1e-14)


def test_even_window_by_hand(backend):
    # A window of 2 is the channel and the one before it.
    y, cache = ops.local_response_norm(np.array([1.0, 2, 3]), size=2, alpha=2, beta=1, k=1)
    np.testing.assert_allclose(y, [1 / 2, 2 / 6, 3 / 14], rtol=1e-15)
    # y[1] = x1 / (1 + x0² + x1²)
    dx = ops.local_response_norm_backward(np.array([0, 36.0, 0]), cache)
    np.testing.assert_allclose(dx, [-4, 6 - 8, 0], rtol=1e-14)


def test_formula_of_the_alexnet_paper(backend, rng):
    """Section 3.3 of the paper, word for word: n = 5, k = 2, alpha = 1e-4 undivided, beta = 0.75."""
    a = 100 * rng.random((2, 3, 4, 11))
    expected = np.empty_like(a)
    for i in range(11):
        window = a[..., max(0, i - 2) : min(10, i + 2) + 1]
        expected[..., i] = a[..., i] / (2 + 1e-4 * (window**2).sum(-1)) ** 0.75
    y, _ = ops.local_response_norm(a, size=5, alpha=5e-4, beta=0.75, k=2)
    np.testing.assert_allclose(y, expected, rtol=1e-14)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60)
@given(case=cases())
def test_against_torch(torch, name, case):
    array, options, dy = case
    with tinyseg.use(name):
        y, cache = ops.local_response_norm(array, **options)
        dx = ops.local_response_norm_backward(dy, cache)
    x = torch.tensor(array, requires_grad=True)
    expected = torch.nn.functional.local_response_norm(x.permute(0, 3, 1, 2), **options).permute(0, 2, 3, 1)
    (expected_dx,) = torch.autograd.grad(expected, x, torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(dx, expected_dx.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 3), (6,)])
def test_gradient(backend, rng, shape, size):
    options = {"size": size, "alpha": 0.7, "beta": 0.75, "k": 0.9}
    check_vjp(ops.local_response_norm, ops.local_response_norm_backward, 2 * rng.standard_normal(shape), **options)


def test_backends_agree_in_float32(rng):
    x, dy = 20 * rng.standard_normal((2, 2, 13, 17, 96), dtype=np.float32)
    results = []
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.local_response_norm(x)
            results.append((y, ops.local_response_norm_backward(dy, cache)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_window(backend):
    x = np.ones((1, 2, 7))
    x[0, 1, 3] = np.nan
    y, _ = ops.local_response_norm(x, size=3)
    assert np.isnan(y[0, 1]).tolist() == [False, False, True, True, True, False, False]
    assert not np.isnan(y[0, 0]).any()


def test_errors():
    x = np.ones((2, 3, 4))
    for size in (0, 2.5, "five"):
        with pytest.raises(ValueError, match=f"size must be an integer of 1 or more, got {size!r}"):
            ops.local_response_norm(x, size=size)
    with pytest.raises(ValueError, match="got alpha=-1, k=1"):
        ops.local_response_norm(x, alpha=-1)
    with pytest.raises(ValueError, match=r"k more than 0, got alpha=0\.0001, k=0"):
        ops.local_response_norm(x, k=0)
    with pytest.raises(ValueError, match="got a single number"):
        ops.local_response_norm(np.array(1.0))
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        ops.local_response_norm(np.arange(3))
    _, cache = ops.local_response_norm(x)
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 3, 4\)"):
        ops.local_response_norm_backward(x[0], cache)
