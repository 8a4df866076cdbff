"""The CRF layer with its parameters: how it starts, what it learns, and its gradients."""

import numpy as np
import pytest

from tinyseg import crf, nn
from tinyseg.gradcheck import check_vjp
from tinyseg.tape import Tensor, no_grad

SHAPE = (2, 5, 4, 3)


@pytest.fixture
def logits_and_images(rng):
    return rng.standard_normal(SHAPE), rng.integers(0, 256, SHAPE, np.uint8)


def mild(**changes):
    return crf.parameters("crf_rnn", appearance_position=4, appearance_colour=60, **changes)


@pytest.mark.parametrize("weights", ["full", "diagonal"])
def test_starts_as_the_dense_crf(logits_and_images, weights):
    logits, images = logits_and_images
    logits = logits.astype(np.float32)
    layer = nn.CRFRNN(3, start=mild(iterations=4), iterations=2, weights=weights)
    for training, iterations in ((True, 2), (False, 4)):
        y = layer.train(training)(logits, images).data
        for n in range(2):
            expected = crf.dense_crf(images[n], logits[n], mild(iterations=iterations), given="logits")
            q = np.exp(y[n]) / np.exp(y[n]).sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(q, expected, atol=1e-4)


def test_parameters():
    layer = nn.CRFRNN(3, learn_bandwidths=True)
    assert {name: p.shape for name, p in layer.named_parameters()} == {
        "smoothness_weight": (3, 3),
        "appearance_weight": (3, 3),
        "compatibility": (3, 3),
        "log_bandwidths": (3,),
    }
    np.testing.assert_array_equal(layer.smoothness_weight.data, 3 * np.eye(3))
    np.testing.assert_array_equal(layer.appearance_weight.data, 5 * np.eye(3))
    np.testing.assert_array_equal(layer.compatibility.data, -np.eye(3))
    np.testing.assert_allclose(layer.bandwidths, [3, 160, 3], rtol=1e-6)
    fixed = nn.CRFRNN(3, weights="diagonal")
    assert fixed.num_parameters() == 3 + 3 + 9
    assert [name for name, _ in fixed.named_buffers()] == ["log_bandwidths"]
    assert repr(layer) == (
        "CRFRNN(3, full weights, bandwidths 3 / 160 / 3, learned, 5 iterations (10 in evaluation))"
    )


@pytest.mark.parametrize("weights", ["full", "diagonal"])
def test_gradients_of_all_parameters(rng, logits_and_images, weights):
    logits, images = logits_and_images
    layer = nn.CRFRNN(
        3, start=mild(), iterations=2, weights=weights, learn_bandwidths=True, method="exact"
    ).astype(np.float64)
    parameters = list(layer.parameters())
    values = [p.data + 0.3 * rng.standard_normal(p.shape) for p in parameters]

    def forward(logits, *values):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data, parameter.grad = value, None
        x = Tensor(logits, requires_grad=True)
        return layer(x, images).data, x

    def backward(dy, x):
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        layer(x, images).backward(dy)
        return x.grad, *(parameter.grad for parameter in parameters)

    check_vjp(forward, backward, (logits, *values))


def test_without_a_tape_it_answers_the_same(logits_and_images):
    logits, images = logits_and_images
    layer = nn.CRFRNN(3, start=mild()).eval()
    with_tape = layer(logits.astype(np.float32), images).data
    with no_grad():
        without = layer(logits.astype(np.float32), images).data
    np.testing.assert_allclose(np.exp(without).sum(axis=-1), 1, atol=1e-5)
    difference = without - with_tape
    np.testing.assert_allclose(difference - difference[..., :1], 0, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "classes and iterations must be at least 1, got classes=0"),
        ({"iterations": 0}, "got classes=3 and iterations=0"),
        ({"weights": "sparse"}, "weights must be 'full' or 'diagonal', got 'sparse'"),
        ({"start": "crfrnn"}, "no CRF preset 'crfrnn'; did you mean 'crf_rnn'"),
        ({"start": crf.Parameters(smoothness_position=(3, 2))}, "each bandwidth must be one number"),
        ({"start": crf.Parameters(iterations=0)}, "iterations of `start` must be 1 or more"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        nn.CRFRNN(**{"classes": 3} | settings)
