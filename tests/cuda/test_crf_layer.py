"""The CRF layer on the GPU: forward, every gradient, and the layer of nn."""

from typing import Any

import numpy as np
import pytest

from tinyseg import cuda, models, nn
from tinyseg.crf.features import visible_colours
from tinyseg.crf.layer import refine, refine_backward, refine_without_gradient
from tinyseg.gradcheck import check_vjp
from tinyseg.tape import Tensor

SHAPE = (2, 7, 6, 3)


def make(machine, forms, dtype):
    """Logits, a coupling for each kernel (0 a number, 1 a vector, 2 a matrix), log bandwidths, and images."""
    couplings = [np.asarray(machine.rng.standard_normal((SHAPE[3],) * axes), dtype) for axes in forms]
    images = machine.rng.uniform(0, 255, (*SHAPE[:3], 2)).astype(dtype)
    return [machine.numbers(*SHAPE, dtype=dtype), *couplings, np.log([1.7, 3.1, 40]).astype(dtype)], images


@pytest.mark.parametrize(
    ("method", "forms"), [("lattice", (0, 1)), ("lattice", (2, 2)), ("exact", (2, 0)), ("local", (1, 2))]
)
def test_refine(machine, dtype, method, forms):
    def both(dy, images, *inputs):
        options = {"images": images, "iterations": 2, "method": method}
        y, cache = refine(*inputs, **options)
        gradients = refine_backward(dy, cache)
        return y, refine_without_gradient(*inputs, **options), *gradients

    inputs, images = make(machine, forms, dtype)
    dy = machine.numbers(*SHAPE, dtype=dtype)
    # float32: bandwidths and features are rounded, which the reference in float64 does not know of.
    machine.agree(both, dy, images, *inputs, tolerance={np.dtype("f4"): 2e-4, np.dtype("f8"): 1e-10})


def test_what_is_not_needed_is_none(machine):
    inputs, images = make(machine, (0, 2), np.float32)
    with cuda.on(machine.devices[0]):
        y, cache = refine(*map(cuda.to_device, inputs), images=images, iterations=1, method="exact")
        everything: Any = refine_backward(y, cache)
        for k in range(4):
            some: Any = refine_backward(y, cache, need=[i == k for i in range(4)])
            assert [gradient is not None for gradient in some] == [i == k for i in range(4)]
            np.testing.assert_array_equal(cuda.to_host(some[k]), cuda.to_host(everything[k]))


def test_gradients(machine):
    inputs, images = make(machine, (1, 2), np.float64)
    with cuda.on(machine.devices[0]):

        def forward(*inputs):
            y, cache = refine(*map(cuda.to_device, inputs), images=images, iterations=2, method="exact")
            return cuda.to_host(y), cache

        def backward(dy, cache):
            gradients: Any = refine_backward(cuda.to_device(dy), cache)
            return tuple(map(cuda.to_host, gradients))

        check_vjp(forward, backward, tuple(inputs))


@pytest.mark.parametrize("learn_bandwidths", [False, True])
def test_the_layer_of_a_network(machine, learn_bandwidths):
    (logits, *_), images = make(machine, (0, 0), np.float32)
    dy = machine.numbers(*SHAPE, dtype=np.float32)

    def train(logits, dy):
        layer = nn.CRFRNN(SHAPE[3], iterations=2, learn_bandwidths=learn_bandwidths)
        if cuda.on_gpu(logits):
            layer.to("cuda")
        x = Tensor(logits, requires_grad=True)
        y = layer(x, images)
        y.backward(dy)
        return [y.data, x.grad, *(parameter.grad for parameter in layer.parameters())]

    expected = train(logits, dy)
    for device in machine.devices:
        with cuda.on(device):
            results = train(cuda.to_device(logits), cuda.to_device(dy))
            results = [cuda.to_host(result) for result in results]
        for result, right in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, right, rtol=2e-3, atol=2e-3 * np.abs(right).max())


@pytest.mark.parametrize(("mean", "std"), [((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), (0.0, 1.0)])
def test_colours_of_normalised_images(machine, dtype, mean, std):
    images = machine.rng.uniform(-2, 2, (2, 3, 5, 3)).astype(dtype)
    machine.agree(lambda x: visible_colours(x, mean, std), images)


def test_a_network_with_a_crf(machine):
    def train(images, dy):
        rng = np.random.default_rng(3)
        model: Any = models.create("crf_rnn_unet", classes=3, base=2, depth=1, iterations=1, rng=rng)
        model = model.astype(images.dtype).to("cuda" if cuda.on_gpu(images) else "cpu")
        y = model(Tensor(images))
        y.backward(dy)
        return [y.data, *(parameter.grad for parameter in model.parameters())]

    images, dy = machine.rng.uniform(0, 1, (2, 6, 8, 3)), machine.numbers(2, 6, 8, 3)
    machine.agree(train, images, dy, tolerance={np.dtype("f8"): 1e-9}, floor=1e-4)
