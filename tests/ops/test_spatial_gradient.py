"""gaussian_blur, spatial_gradient, gradient_magnitude: by hand, against SciPy, adjoints, laws, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import ops
from tinyseg.gradcheck import check_adjoint, check_vjp

BACKENDS = ["numpy", "numba"]
SIGMA_121 = np.sqrt(1 / (2 * np.log(2)))  # the Gaussian of radius 1 that weighs 1 : 2 : 1
SHAPES = [(2, 7, 5, 3), (1, 1, 6, 2), (1, 4, 1, 1), (1, 1, 1, 2)]


@st.composite
def images(draw):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4)))
    x = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(shape)
    return np.asfortranarray(x) if draw(st.booleans()) else x


def test_blur_by_hand(backend):
    x = np.array([[16.0, 0, 0], [0, 0, 0]]).reshape(1, 2, 3, 1)
    y, cache = ops.gaussian_blur(x, sigma=SIGMA_121, radius=1)
    # The corner pixel stands beyond the corner, too: weights 3, 1 of 4 in each direction.
    np.testing.assert_allclose(y[0, :, :, 0], [[9, 3, 0], [3, 1, 0]], rtol=1e-14)
    dx = ops.gaussian_blur_backward(x, cache)
    np.testing.assert_allclose(dx[0, :, :, 0], [[9, 3, 0], [3, 1, 0]], rtol=1e-14)


def test_gradient_by_hand(backend):
    x = np.array([[1.0, 2, 6], [5, 5, 5]]).reshape(1, 2, 3, 1)
    y, cache = ops.spatial_gradient(x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[2, 1.5, -0.5], [2, 1.5, -0.5]])
    np.testing.assert_array_equal(y[0, :, :, 1], [[0.5, 2.5, 2], [0, 0, 0]])
    dy = np.zeros(y.shape)
    dy[0, 0, 1] = [10, 4]  # of the pixel with 2: half of the pixel below less itself; half of 6 less 1
    dx = ops.spatial_gradient_backward(dy, cache)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[-2, -5, 2], [0, 5, 0]])


def test_magnitude_by_hand(backend):
    x = np.array([[0.0, 6], [8, 14]]).reshape(1, 2, 2, 1)  # gradient (4, 3) everywhere
    y, cache = ops.gradient_magnitude(x, smoothing=12.0)
    np.testing.assert_allclose(y, np.full((1, 2, 2, 1), 13 - 12), rtol=1e-14)  # 3^2 + 4^2 + 12^2 = 13^2
    dy = np.array([[13.0, 0], [0, 0]]).reshape(1, 2, 2, 1)
    dx = ops.gradient_magnitude_backward(dy, cache)
    np.testing.assert_allclose(dx[0, :, :, 0], [[-2 - 1.5, 1.5], [2, 0]], rtol=1e-14)


@pytest.mark.oracle
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=50)
@given(x=images(), sigma=st.floats(0.2, 2.5))
def test_blur_against_scipy(name, x, sigma):
    ndimage = pytest.importorskip("scipy.ndimage")
    radius = int(np.ceil(3 * sigma))
    with tinyseg.use(name):
        y, _ = ops.gaussian_blur(x, sigma=sigma)
    expected = ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", radius=(0, radius, radius, 0))
    np.testing.assert_allclose(y, expected, atol=1e-13)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=50)
@given(x=images())
def test_gradient_against_padded_slices(name, x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    v = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    u = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    with tinyseg.use(name):
        y, _ = ops.spatial_gradient(x)
        magnitude, _ = ops.gradient_magnitude(x, smoothing=0.1)
    np.testing.assert_allclose(y, np.concatenate([v, u], axis=-1), atol=1e-15)
    np.testing.assert_allclose(magnitude, np.hypot(np.hypot(u, v), 0.1) - 0.1, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_adjoints(backend, rng, shape):
    x = rng.standard_normal(shape)
    dy = rng.standard_normal((*shape[:3], 2 * shape[3]))
    _, blur = ops.gaussian_blur(x, sigma=0.9)
    check_adjoint(
        lambda x: ops.gaussian_blur(x, sigma=0.9)[0],
        lambda dy: ops.gaussian_blur_backward(dy, blur),
        x,
        x[::-1] + x**2,
    )
    if max(shape[1:3]) > 1:
        _, gradient = ops.spatial_gradient(x)
        check_adjoint(
            lambda x: ops.spatial_gradient(x)[0], lambda dy: ops.spatial_gradient_backward(dy, gradient), x, dy
        )


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradients(backend, rng, shape):
    x = rng.standard_normal(shape)
    check_vjp(ops.gaussian_blur, ops.gaussian_blur_backward, x, sigma=1.2)
    check_vjp(ops.spatial_gradient, ops.spatial_gradient_backward, x)
    check_vjp(ops.gradient_magnitude, ops.gradient_magnitude_backward, x, smoothing=0.2)


def test_a_constant_stays_and_has_no_gradient(backend):
    x = np.full((1, 5, 4, 2), 0.7)
    np.testing.assert_allclose(ops.gaussian_blur(x, sigma=1.5)[0], x, rtol=1e-14)
    assert not ops.spatial_gradient(x)[0].any()
    y, cache = ops.gradient_magnitude(x)
    assert not y.any()
    assert not ops.gradient_magnitude_backward(x, cache).any()  # no NaN at the tip of the cone


def test_two_blurs_are_one(backend, rng):
    """Variances add, up to what sampling and cutting off the Gaussians change."""
    x = rng.standard_normal((1, 31, 33, 1))
    twice = ops.gaussian_blur(ops.gaussian_blur(x, sigma=1.2, radius=8)[0], sigma=0.9, radius=8)[0]
    once = ops.gaussian_blur(x, sigma=1.5, radius=12)[0]
    np.testing.assert_allclose(twice[:, 12:-12, 12:-12], once[:, 12:-12, 12:-12], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backends_agree(rng, dtype):
    x = rng.standard_normal((2, 23, 19, 5)).astype(dtype)
    results = []
    for name in BACKENDS:
        with tinyseg.use(name):
            y, cache = ops.gradient_magnitude(ops.gaussian_blur(x, sigma=1.0)[0])
            results.append((y, ops.gradient_magnitude_backward(x, cache)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_errors():
    x = np.ones((1, 3, 4, 2))
    for sigma in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="gaussian_blur: sigma must be more than 0 and finite"):
            ops.gaussian_blur(x, sigma=sigma)
    with pytest.raises(ValueError, match=r"radius must be an integer of 0 or more, got 1\.5"):
        ops.gaussian_blur(x, sigma=1, radius=1.5)
    with pytest.raises(ValueError, match=r"spatial_gradient: x must have the axes \(N, H, W, C\)"):
        ops.spatial_gradient(x[0])
    with pytest.raises(ValueError, match="smoothing must be more than 0, got 0"):
        ops.gradient_magnitude(x, smoothing=0)
    with pytest.raises(ValueError, match=r"dy must have shape \(1, 3, 4, 4\)"):
        ops.spatial_gradient_backward(x, ops.spatial_gradient(x)[1])
    with pytest.raises(TypeError, match="must be float32 or float64, got int64"):
        ops.gradient_magnitude(x.astype(np.int64))
