"""encoding: by hand, against torch, gradients, laws, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp, check_vjp_full

BACKENDS = ["numpy", "numba"]


@st.composite
def cases(draw):
    """x, codewords, scales and dy."""
    N, H, W = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 17))
    C, K = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((N, H, W, C))
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    return x, rng.standard_normal((K, C)), rng.uniform(-1.5, 0.5, K), rng.standard_normal((N, C, K))


def both_passes(name, x, d, s, dy, **options):
    with tinyseg.use(name):
        y, cache = ops.encoding(x, d, s)
        return y, ops.encoding_backward(dy, cache, **options)


def test_by_hand(backend):
    # One pixel (1, 2), codewords (1, 0) and (0, 2): squares 4 and 1, logits log 3 and 0, shares 3/4, 1/4.
    x, d = np.array([1.0, 2]).reshape(1, 1, 1, 2), np.array([[1.0, 0], [0, 2]])
    s = np.array([np.log(3) / 4, 0])
    dy = np.array([[[0.0, 8], [2, 0]]])
    y, (dx, dd, ds) = both_passes(backend, x, d, s, dy)
    np.testing.assert_allclose(y, [[[0, 1 / 4], [3 / 2, 0]]], atol=1e-15)  # y[c, k]: shares of (0, 2) and (1, 0)
    # g = (2 * 2, 8 * 1), mean 3/4 * 4 + 1/4 * 8 = 5, dz = (-3/4, 3/4), dr[0] = 3/4 (0, 2) + 2 s (-3/4) (0, 2)
    first = np.array([0, 1.5 - 3 * s[0]])
    second = np.array([2.0, 0])
    np.testing.assert_allclose(dx[0, 0, 0], first + second, rtol=1e-14)
    np.testing.assert_allclose(dd, [-first, -second], atol=1e-14)
    np.testing.assert_allclose(ds, [-3 / 4 * 4, 3 / 4 * 1], rtol=1e-14)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=50)
@given(case=cases())
def test_against_torch(torch, name, case):
    x, d, s, dy = case
    y, gradients = both_passes(name, x, d, s, dy)
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, d, s)]
    tx, td, ts = tensors
    residuals = tx.flatten(1, 2)[:, :, None] - td
    shares = torch.softmax(ts * residuals.square().sum(-1), -1)
    expected = (shares[..., None] * residuals).sum(1).transpose(1, 2)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-10, atol=1e-11)
    for ours, theirs in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 3), (1, 9, 8, 1)])
def test_gradients(backend, rng, shape):
    K = 3
    inputs = (rng.standard_normal(shape), rng.standard_normal((K, shape[-1])), rng.uniform(-1, 0, K))
    check_vjp(ops.encoding, ops.encoding_backward, inputs)
    check_vjp_full(ops.encoding, ops.encoding_backward, inputs)


def test_need(backend, rng):
    inputs = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((3, 5)), rng.uniform(-1, 0, 3)
    dy = rng.standard_normal((2, 5, 3))
    _, every = both_passes(backend, *inputs, dy)
    for i in range(3):
        need = tuple(j == i for j in range(3))
        _, some = both_passes(backend, *inputs, dy, need=need)
        assert [gradient is not None for gradient in some] == list(need)
        assert np.array_equal(some[i], every[i])


def test_laws(backend, rng):
    x, d, s = rng.standard_normal((2, 7, 10, 4)), rng.standard_normal((3, 4)), rng.uniform(-1, 0, 3)
    y, _ = ops.encoding(x, d, s)
    # The order of the pixels does not matter, nor the company in the batch, nor where the origin lies.
    shuffled = rng.permutation(x.reshape(2, 70, 4), axis=1).reshape(2, 10, 7, 4)
    np.testing.assert_allclose(ops.encoding(shuffled, d, s)[0], y, atol=1e-12)
    np.testing.assert_array_equal(ops.encoding(x[1:], d, s)[0], y[1:])
    np.testing.assert_allclose(ops.encoding(x + 5, d + 5, s)[0], y, atol=1e-11)
    # With scales of 0 all codewords share alike.
    mean = (x.reshape(2, 70, 1, 4) - d).sum(axis=1) / 3
    np.testing.assert_allclose(ops.encoding(x, d, np.zeros(3))[0], mean.transpose(0, 2, 1), atol=1e-12)


def test_backends_agree_in_float32(rng):
    x = rng.standard_normal((2, 13, 17, 24)).astype(np.float32)
    d, s = rng.standard_normal((8, 24)).astype(np.float32), rng.uniform(-0.5, 0, 8).astype(np.float32)
    dy = rng.standard_normal((2, 24, 8)).astype(np.float32)
    results = [both_passes(name, x, d, s, dy) for name in BACKENDS]
    for a, b in zip(*((y, *gradients) for y, gradients in results), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_nan_stays_visible(backend):
    x = np.zeros((2, 2, 2, 3))
    x[1, 0, 1, 2] = np.nan
    y, _ = ops.encoding(x, np.ones((2, 3)), np.array([-1.0, -2]))
    assert np.isfinite(y[0]).all() and np.isnan(y[1, 2]).all()


def test_errors():
    x, d, s = np.ones((1, 3, 4, 5)), np.ones((2, 5)), np.ones(2)
    with pytest.raises(ValueError, match=r"codewords must have shape \(2, 5\) .* got \(2, 4\)"):
        ops.encoding(x, np.ones((2, 4)), s)
    with pytest.raises(ValueError, match=r"scales must have shape \(2,\) .* got \(3,\)"):
        ops.encoding(x, d, np.ones(3))
    with pytest.raises(ValueError, match=r"encoding: x must have the axes \(N, H, W, C\)"):
        ops.encoding(x[0], d, s)
    with pytest.raises(TypeError, match="all arrays must have one type"):
        ops.encoding(x, d.astype(np.float32), s)
    with pytest.raises(ValueError, match=r"dy must have shape \(1, 5, 2\)"):
        ops.encoding_backward(np.ones((1, 2, 5)), ops.encoding(x, d, s)[1])
