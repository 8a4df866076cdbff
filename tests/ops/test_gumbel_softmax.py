"""gumbel_softmax: by hand, against torch on the same noise, the noise's distribution, gradients, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_vjp
from tinyseg.ops.dropout import random_words
from tinyseg.ops.gumbel_softmax import gumbel_noise

BACKENDS = ["numpy", "numba"]


def test_by_hand(backend):
    x = np.log(np.array([[1.0, 2, 1], [3, 1, 0.5]]))
    y, cache = ops.gumbel_softmax(x, temperature=0.5, seed=None)  # squares of the weights
    np.testing.assert_allclose(y, [[1 / 6, 4 / 6, 1 / 6], [36 / 41, 4 / 41, 1 / 41]], rtol=1e-14)
    # sum of dy y = 1 in the first row; divided by the temperature
    dx = ops.gumbel_softmax_backward(np.array([[6.0, 0, 0], [0, 0, 0]]), cache)
    np.testing.assert_allclose(dx, [[2 * 5 / 6, -2 * 4 / 6, -2 / 6], [0, 0, 0]], atol=1e-14)


def test_noise_by_hand(backend):
    """From the words of the generator, whose values are known from its authors' tests."""
    words = random_words(6, seed=3, offset=5).reshape(2, 3)
    noise = [[-np.log(-np.log((float(word) + 0.5) / 4294967296)) for word in row] for row in words]
    x = np.zeros((2, 3))
    e = np.exp(noise)
    y, _ = ops.gumbel_softmax(x, seed=3, offset=5)
    np.testing.assert_allclose(y, e / e.sum(axis=1, keepdims=True), rtol=1e-13)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=50)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    temperature=st.floats(0.3, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_against_torch_on_the_same_noise(torch, name, shape, temperature, seed):
    rng = np.random.default_rng(seed)
    x, dy = 3 * rng.standard_normal(shape), rng.standard_normal(shape)
    with tinyseg.use(name):
        y, cache = ops.gumbel_softmax(x, temperature=temperature, seed=seed, offset=2)
        dx = ops.gumbel_softmax_backward(dy, cache)
    z = torch.tensor(x, requires_grad=True)
    noise = torch.tensor(gumbel_noise(tuple(shape), seed=seed, offset=2))
    expected = torch.softmax((z + noise) / temperature, -1)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(dx, z.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (7, 1), (3,)])
@pytest.mark.parametrize("seed", [None, 11])
def test_gradient(backend, rng, shape, seed):
    check_vjp(
        lambda x: ops.gumbel_softmax(x, temperature=0.7, seed=seed),
        ops.gumbel_softmax_backward,
        rng.standard_normal(shape),
    )


def test_the_argmax_is_a_draw_from_the_softmax():
    p = np.array([0.1, 0.2, 0.7])
    y, _ = ops.gumbel_softmax(np.tile(np.log(p), (20000, 1)), seed=1)
    frequencies = np.bincount(y.argmax(axis=1), minlength=3) / 20000
    np.testing.assert_allclose(frequencies, p, atol=4 * np.sqrt(0.25 / 20000))


def test_moments_of_the_noise():
    noise = gumbel_noise((200, 500), seed=9)
    np.testing.assert_allclose(noise.mean(), np.euler_gamma, atol=0.02)
    np.testing.assert_allclose(noise.var(), np.pi**2 / 6, rtol=0.03)
    assert np.isfinite(noise).all()


def test_low_temperature_is_one_hot(backend, rng):
    y, _ = ops.gumbel_softmax(rng.standard_normal((50, 4)), temperature=1e-4, seed=1)
    np.testing.assert_allclose(y.max(axis=1), 1, atol=1e-6)


def test_draws_differ_by_seed_and_offset_only():
    x = np.zeros((4, 5), np.float32)
    first = ops.gumbel_softmax(x, seed=1)[0]
    assert np.array_equal(first, ops.gumbel_softmax(x, seed=1)[0])
    for other in ({"seed": 2}, {"seed": 1, "offset": 1}):
        assert not np.array_equal(first, ops.gumbel_softmax(x, **other)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backends_agree(rng, dtype):
    x, dy = rng.standard_normal((2, 2, 9, 8, 19)).astype(dtype)
    results = []
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.gumbel_softmax(x, temperature=0.5, seed=4)
            results.append((y, ops.gumbel_softmax_backward(dy, cache)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_errors():
    with pytest.raises(ValueError, match="temperature must be more than 0, got 0"):
        ops.gumbel_softmax(np.ones((2, 3)), temperature=0, seed=1)
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        ops.gumbel_softmax(np.ones((2, 3)), seed=-1)
    with pytest.raises(ValueError, match="offset must be an integer from 0"):
        ops.gumbel_softmax(np.ones((2, 3)), seed=1, offset=0.5)
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        ops.gumbel_softmax(np.ones((2, 3), np.int64), seed=1)
    _, cache = ops.gumbel_softmax(np.ones((2, 3)), seed=1)
    with pytest.raises(ValueError, match=r"gumbel_softmax_backward: dy must have shape \(2, 3\)"):
        ops.gumbel_softmax_backward(np.ones((3, 2)), cache)
