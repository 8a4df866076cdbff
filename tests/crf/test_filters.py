"""All Gaussian filters: laws that each must keep, the four normalisations, and derivatives by bandwidths."""

import numpy as np
import pytest

import tinyseg
from tinyseg import crf
from tinyseg.crf.filters import NORMALISATIONS
from tinyseg.gradcheck import check_adjoint

HEIGHT, WIDTH = 7, 9
KINDS = ["exact", "lattice", "lattice, position", "separable", "local", "without self"]


def make(kind: str, scale=(1.0, 1.0, 1.0), dtype=np.float64) -> crf.Filter:
    """A filter of 63 points. `scale` multiplies the bandwidths of x, y and colour."""
    rng = np.random.default_rng(5)
    position = crf.position_features(HEIGHT, WIDTH, 2.0).astype(dtype) / np.asarray(scale[:2], dtype)
    colour = rng.uniform(0, 3, (HEIGHT * WIDTH, 1)).astype(dtype) / dtype(scale[2])
    features = np.concatenate([position, colour], axis=1)
    if kind == "exact":
        return crf.ExactFilter(features)
    if kind == "without self":
        return crf.ExactFilter(features, include_self=False)
    if kind == "lattice":
        return crf.LatticeFilter(features)
    if kind == "lattice, position":
        return crf.LatticeFilter(position)
    if kind == "separable":
        return crf.SeparableFilter((HEIGHT, WIDTH), (2.0 * scale[0], 2.0 * scale[1]))
    return crf.LocalFilter(features, (HEIGHT, WIDTH), window=5)


@pytest.mark.parametrize("mode", NORMALISATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_transpose_is_the_adjoint(backend, kind, mode, rng):
    f = crf.Normalised(make(kind), mode, np.float64)
    x, y = rng.standard_normal((2, HEIGHT * WIDTH, 3))
    check_adjoint(f.apply, f.apply_transpose, x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_agree(kind, rng):
    for dtype, tolerance in ((np.float32, 3e-6), (np.float64, 1e-13)):
        x = rng.standard_normal((HEIGHT * WIDTH, 4)).astype(dtype)
        results = []
        for name in ("numpy", "numba"):
            with tinyseg.use(name):
                f = make(kind, dtype=dtype)
                results.append((f.apply(x), f.apply_transpose(x), crf.Normalised(f, dtype=dtype).norm))
        for ours, reference in zip(*results, strict=True):
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance * abs(reference).max())


@pytest.mark.parametrize("kind", KINDS)
def test_filters_are_linear_label_by_label(backend, kind, rng):
    f = make(kind)
    x, y = rng.standard_normal((2, HEIGHT * WIDTH, 3))
    np.testing.assert_allclose(f.apply(2 * x - y), 2 * f.apply(x) - f.apply(y), atol=1e-12)
    np.testing.assert_allclose(f.apply(x)[:, [2, 0]], f.apply(np.asfortranarray(x[:, [2, 0]])), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_after_is_a_weighted_mean(backend, kind):
    f = crf.Normalised(make(kind), "after", np.float64)
    np.testing.assert_allclose(f.apply(np.full((HEIGHT * WIDTH, 2), 0.25)), 0.25, rtol=1e-12)


def test_normalisations_by_hand():
    # Two points at distance 1: K = [[1, k], [k, 1]], k = exp(-1/2); a third far away has only itself.
    kernel = crf.ExactFilter(np.array([[0.0], [1.0], [100.0]]))
    x = np.array([[2.0], [-1.0], [5.0]])
    k = np.exp(-0.5)
    n = 1 + k
    raw = np.array([[2 - k], [2 * k - 1], [5.0]])
    expected = {"none": raw, "before": raw / [[n], [n], [1]], "after": raw / [[n], [n], [1]]}
    expected["symmetric"] = expected["after"]  # both points have the same norm
    for mode, y in expected.items():
        np.testing.assert_allclose(crf.Normalised(kernel, mode, np.float64).apply(x), y, rtol=1e-14)


def test_normalisations_differ_where_the_norm_varies():
    # Three points in a row at distance 1: the middle one has more neighbours.
    features = np.array([[0.0], [1.0], [2.0]])
    near, far = np.exp(-0.5), np.exp(-2.0)
    k = np.array([[1, near, far], [near, 1, near], [far, near, 1]])
    n = k.sum(axis=1, keepdims=True)
    x = np.array([[1.0], [4.0], [-2.0]])
    expected = {"before": k @ (x / n), "after": (k @ x) / n, "symmetric": (k @ (x / n**0.5)) / n**0.5}
    for mode, y in expected.items():
        np.testing.assert_allclose(
            crf.Normalised(crf.ExactFilter(features), mode, np.float64).apply(x), y, rtol=1e-14
        )


@pytest.mark.parametrize("mode", NORMALISATIONS)
@pytest.mark.parametrize("kind", ["exact", "separable", "local", "without self"])
def test_bandwidth_gradient_against_finite_differences(kind, mode, rng):
    a, b = rng.standard_normal((2, HEIGHT * WIDTH, 3))
    dimensions = 2 if kind == "separable" else 3

    def score(log_scale):
        f = crf.Normalised(make(kind, np.exp(log_scale)), mode, np.float64)
        return np.sum(a * f.apply(b))

    gradient = crf.Normalised(make(kind), mode, np.float64).log_bandwidth_gradient(a, b)
    assert gradient.shape == (dimensions,)
    for k in range(dimensions):
        step = np.zeros(3)
        step[k] = 1e-4
        if kind == "separable":
            numerical = (score(step) - score(-step)) / 2e-4
            # Bandwidths are rounded to float32, and the number of taps may change with them.
            np.testing.assert_allclose(gradient[k], numerical, rtol=2e-2, atol=2e-2)
        else:
            numerical = (score(step) - score(-step)) / 2e-4
            np.testing.assert_allclose(gradient[k], numerical, rtol=1e-6, atol=1e-6)


def test_bandwidth_gradient_of_the_lattice_is_near_the_exact_one(rng):
    # The lattice's own derivative jumps from cell to cell; its moments approximate those of the Gaussian instead.
    position = crf.position_features(24, 30, 3.0)
    smooth = crf.Normalised(crf.ExactFilter(position), "after", np.float64)
    a, b = (smooth.apply(rng.standard_normal((720, 4))) for _ in range(2))
    exact = smooth.log_bandwidth_gradient(a, b)
    lattice = crf.Normalised(crf.LatticeFilter(position), "after", np.float64).log_bandwidth_gradient(a, b)
    np.testing.assert_allclose(lattice, exact, rtol=0.25, atol=0.05 * abs(exact).max())


def test_separable_and_local_against_the_exact_filter(backend, rng):
    x = rng.standard_normal((HEIGHT * WIDTH, 2))
    position = crf.ExactFilter(crf.position_features(HEIGHT, WIDTH, 1.5)).apply(x)
    separable = crf.SeparableFilter((HEIGHT, WIDTH), 1.5).apply(x)
    np.testing.assert_allclose(separable, position, atol=1e-3 * abs(position).max())
    whole = crf.LocalFilter(crf.position_features(HEIGHT, WIDTH, 1.5).astype(float), (HEIGHT, WIDTH), window=17)
    np.testing.assert_allclose(whole.apply(x), position, atol=1e-6)


def test_local_window_by_hand(backend):
    # A row of three pixels of equal features: each sees itself and its neighbours, all with weight 1.
    f = crf.LocalFilter(np.zeros((3, 1)), (1, 3), window=3)
    assert f.apply(np.array([[1.0], [10], [100]])).ravel().tolist() == [11, 111, 110]
    alone = crf.LocalFilter(np.zeros((3, 1)), (1, 3), window=3, include_self=False)
    assert alone.apply(np.array([[1.0], [10], [100]])).ravel().tolist() == [10, 101, 10]


def test_separable_without_self(backend, rng):
    x = rng.standard_normal((HEIGHT * WIDTH, 2))
    exact = crf.ExactFilter(crf.position_features(HEIGHT, WIDTH, 1.5), include_self=False).apply(x)
    ours = crf.SeparableFilter((HEIGHT, WIDTH), 1.5, include_self=False).apply(x)
    np.testing.assert_allclose(ours, exact, atol=1e-3 * abs(exact).max())


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: crf.ExactFilter(np.zeros(5)), r"features must have shape \(N, d\).*got \(5,\)"),
        (lambda: crf.LatticeFilter(np.zeros((0, 2))), r"features must have shape"),
        (lambda: crf.LatticeFilter(np.array([[0, 1], [2, np.nan]])), "feature 1 of point 1"),
        (lambda: crf.LocalFilter(np.zeros((6, 2)), (2, 4)), r"6 points are no image of size \(2, 4\)"),
        (lambda: crf.LocalFilter(np.zeros((6, 2)), (2, 3), window=4), "odd number of pixels, got 4"),
        (lambda: crf.SeparableFilter((4, 5), 0.0), "bandwidth must be positive and finite, got 0.0"),
        (lambda: crf.SeparableFilter((4, 5), (1, 2, 3)), "one number or 2, got 3"),
        (lambda: crf.SeparableFilter((0, 5), 1.0), r"size must be \(height, width\)"),
        (lambda: crf.position_features(3, 4, -1), "positive and finite, got -1"),
        (lambda: crf.bilateral_features(np.zeros((3, 4, 3)), 1, np.nan), "positive and finite, got nan"),
        (lambda: crf.bilateral_features(np.zeros((3, 4, 3)), 1, "red"), "a number or 3 numbers, got 'red'"),
        (lambda: crf.bilateral_features(np.full((3, 4, 3), 0.5), 1, 1), "between 0 and 1"),
        (
            lambda: crf.bilateral_features(np.zeros((2, 3, 4, 3)), 1, 1),
            r"image must have shape \(H, W, channels\)",
        ),
        (lambda: crf.Normalised(make("exact"), "both"), "mode must be one of none, before, after, symmetric"),
        (lambda: make("exact").apply(np.zeros((5, 2))), r"x must have shape \(63, L\).*got \(5, 2\)"),
        (lambda: make("lattice").apply(np.zeros((63, 2), int)), "x must be float32 or float64"),
    ],
)
def test_errors(attempt, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attempt()


def test_a_bandwidth_that_leaves_no_room_for_the_codes():
    image = np.zeros((20, 30, 3), np.uint8)
    image[0, 0] = 255
    with pytest.raises(ValueError, match="bandwidth is far too small"):
        crf.LatticeFilter(crf.bilateral_features(image, 80, 1e-6))
    wide = np.random.default_rng(0).uniform(0, 1e4, (50, 7))
    with pytest.raises(ValueError, match=r"the lattice has 2\^\d+ points .* make the bandwidths larger"):
        crf.LatticeFilter(wide)


def test_not_finite_image():
    image = np.full((4, 5, 3), 80.0)
    image[2, 3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite in 1 of 60 values, the first at row 2, column 3, channel 1"):
        crf.bilateral_features(image, 5, 5)
