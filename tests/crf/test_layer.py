"""The CRF layer: against single images, gradients of every input, the fast way, and errors."""

import numpy as np
import pytest

from tinyseg import crf
from tinyseg.crf.layer import refine, refine_backward, refine_without_gradient
from tinyseg.gradcheck import check_vjp

SHAPE = (2, 4, 5, 3)
BANDWIDTHS = np.log([1.5, 3.0, 40.0])


def make(rng, forms=(1, 2), dtype=np.float64, shape=SHAPE):
    """Logits, a coupling for each kernel (0 a number, 1 a vector, 2 a matrix), log bandwidths, and images."""
    couplings = [np.asarray(rng.standard_normal((shape[3],) * axes), dtype) for axes in forms]
    images = rng.integers(0, 256, (*shape[:3], 3), np.uint8)
    return [rng.standard_normal(shape).astype(dtype), *couplings, BANDWIDTHS.astype(dtype)], images


@pytest.mark.parametrize("normalisation", ["after", "symmetric"])
def test_each_image_is_a_mean_field_of_its_own(rng, normalisation):
    (logits, smoothness, appearance, _), images = make(rng, dtype=np.float32)
    bandwidths = np.log(np.array([2, 4, 30], np.float32))
    y, _ = refine(
        logits, smoothness, appearance, bandwidths, images=images, iterations=3, normalisation=normalisation
    )
    for n in range(2):
        features = crf.position_features(4, 5, 2), crf.bilateral_features(images[n], 4, 30)
        filters = [crf.Normalised(crf.LatticeFilter(f), normalisation) for f in features]
        unary = -logits[n].reshape(20, 3)
        q = crf.mean_field(unary, smoothness, appearance, filters=filters, iterations=3)[0]
        softmax = np.exp(y[n]) / np.exp(y[n]).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(softmax.reshape(20, 3), q, atol=1e-5)


def test_it_is_dense_crf_with_the_preset_of_the_paper(toy):
    image, probabilities = toy
    chosen = crf.parameters("crf_rnn")
    expected = crf.dense_crf(image, probabilities, chosen)
    y = refine_without_gradient(
        np.log(probabilities)[None],
        np.float32(-chosen.smoothness_weight),
        np.float32(-chosen.appearance_weight),
        np.log(np.array([3, 160, 3], np.float32)),
        images=image[None],
        iterations=chosen.iterations,
    )
    assert (y[0].argmax(axis=-1) == expected.argmax(axis=-1)).mean() > 0.99
    np.testing.assert_allclose(np.exp(y[0]).mean(axis=(0, 1)), expected.mean(axis=(0, 1)), atol=2e-3)


@pytest.mark.parametrize("method", ["exact", "lattice", "local"])
@pytest.mark.parametrize("forms", [(0, 1), (2, 0), (1, 2)])
def test_gradients(rng, forms, method):
    (logits, *couplings, bandwidths), images = make(rng, forms)

    def forward(logits, smoothness, appearance):
        return refine(logits, smoothness, appearance, bandwidths, images=images, iterations=3, method=method)

    def backward(dy, cache):
        return refine_backward(dy, cache, need=(True, True, True, False))[:3]

    check_vjp(forward, backward, (logits, *couplings))


@pytest.mark.parametrize("method", ["exact", "local"])
@pytest.mark.parametrize("normalisation", ["none", "before", "after", "symmetric"])
def test_gradients_of_bandwidths(rng, normalisation, method):
    inputs, images = make(rng)
    check_vjp(
        refine,
        refine_backward,
        tuple(inputs),
        images=images,
        iterations=2,
        normalisation=normalisation,
        method=method,
    )


def test_bandwidth_gradients_on_the_lattice_are_nearly_those_of_the_kernel():
    # Not by differences: the lattice jumps. Smooth images and wide kernels make the two filters alike.
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:16, :18]
    image = np.stack([8 * x, 8 * y, 4 * (x + y)], axis=-1)[None].astype(np.uint8)
    logits = 2 * rng.standard_normal((1, 16, 18, 3))
    inputs = logits, np.array(-1.0), np.array(-2.0), np.log([3.0, 9.0, 60.0])
    dy = rng.standard_normal(logits.shape)
    gradients = {}
    for method in ("exact", "lattice"):
        _, cache = refine(*inputs, images=image, iterations=3, method=method)
        gradients[method] = refine_backward(dy, cache)[3]
    error = np.linalg.norm(gradients["lattice"] - gradients["exact"]) / np.linalg.norm(gradients["exact"])
    assert error < 0.15


def test_what_is_not_needed_is_none(rng):
    inputs, images = make(rng)
    y, cache = refine(*inputs, images=images, iterations=2, method="exact")
    everything = refine_backward(y, cache)
    for k in range(4):
        some = refine_backward(y, cache, need=[i == k for i in range(4)])
        assert [i for i in range(4) if some[i] is not None] == [k]
        np.testing.assert_array_equal(some[k], everything[k])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_gradient_is_the_same_up_to_a_number_for_each_pixel(rng, dtype):
    inputs, images = make(rng, dtype=dtype, shape=(2, 9, 7, 4))
    y, _ = refine(*inputs, images=images, iterations=4)
    fast = refine_without_gradient(*inputs, images=images, iterations=4)
    assert fast.dtype == y.dtype == dtype
    np.testing.assert_allclose(np.exp(fast).sum(axis=-1), 1, atol=1e-5)
    difference = fast - y
    np.testing.assert_allclose(difference, difference[..., :1].repeat(4, axis=-1), atol=1e-3)


def test_grey_images_and_one_pixel(rng):
    (logits, *rest), _ = make(rng, shape=(1, 1, 1, 3))
    y, cache = refine(logits, *rest, images=np.full((1, 1, 1, 1), 7, np.uint8), iterations=1)
    assert y.shape == refine_backward(y, cache)[0].shape == (1, 1, 1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 4, 3))}, r"logits must have the axes \(N, H, W, L\)"),
        ({"images": np.zeros((2, 5, 4, 3), np.uint8)}, r"same N, H and W, got \(2, 5, 4, 3\) and \(2, 4, 5, 3\)"),
        ({"images": np.full((2, 4, 5, 3), 0.5)}, "colours between 0 and 1, .* pass 255 \\* image"),
        ({"images": np.full((2, 4, 5, 3), np.nan)}, "image is not finite in 120 of 120 values"),
        ({"log_bandwidths": np.zeros(2)}, r"log_bandwidths must have shape \(3,\) \(of s_g, s_a and s_b\)"),
        ({"log_bandwidths": np.array([0, np.inf, 0])}, "log_bandwidths, shape .* is not finite"),
        ({"smoothness": np.zeros(4)}, r"coupling 0 must be a number, or have shape \(3,\) or \(3, 3\)"),
        ({"appearance": np.zeros(3, np.float32)}, "all arrays must have one type"),
        ({"iterations": 0}, "iterations must be 1 or more, got 0"),
        ({"method": "fast"}, "method must be lattice, local or exact; got 'fast'"),
    ],
)
def test_errors(rng, change, message):
    inputs, images = make(rng, (0, 0))
    call = dict(zip(("logits", "smoothness", "appearance", "log_bandwidths"), inputs, strict=True))
    call |= {"images": images} | change
    for function in (refine, refine_without_gradient):
        with pytest.raises((ValueError, TypeError), match=message):
            function(**call)


def test_backward_checks_its_upstream_gradient(rng):
    inputs, images = make(rng)
    _, cache = refine(*inputs, images=images, iterations=1)
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 4, 5, 3\)"):
        refine_backward(np.zeros((2, 5, 4, 3)), cache)
