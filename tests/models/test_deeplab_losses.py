"""What DeepLab v1 and v2 are trained on: shrunk labels, and a loss for each scale."""

import numpy as np
import pytest

from tinyseg import models, ops
from tinyseg.models.network import CrossEntropy, total

V1 = ("deeplab_v1_largefov", {"width": 1 / 32})
V2_VGG = ("deeplab_v2_vgg16", {"width": 1 / 32})
V2_RESNET = ("deeplab_v2_resnet101", {"backbone": "resnet18", "width": 1 / 16})


def create(network, **changes):
    name, settings = network
    return models.create(name, 3, 4, rng=np.random.default_rng(0), **settings, **changes).eval().astype(np.float64)


@pytest.fixture
def batch(rng):
    """Images of 35 x 42 pixels, not of the grid, with labels, some of them ignored, and weights."""
    labels = rng.integers(0, 4, (2, 35, 42))
    labels[0, :9] = 255
    return rng.standard_normal((2, 35, 42, 3)), labels, rng.random((2, 35, 42))


def on_grid(x):
    """41 x 49 pixels, and so a grid of 6 x 7 that ends with them."""
    return np.pad(x, ((0, 0), (0, 6), (0, 7), (0, 0)))


def cross_entropy(logits, labels, weights):
    return ops.cross_entropy(logits, labels, pixel_weights=weights, ignore_label=255)[0]


@pytest.mark.parametrize("network", [V1, V2_VGG, V2_RESNET], ids=lambda network: network[0])
def test_shrunk_labels(network, batch):
    x, labels, weights = batch
    net = create(network, shrunk_labels=True)
    outputs = net.outputs(x)
    assert outputs.shape == (2, 5, 6, 4)
    losses = net.losses(outputs, labels, CrossEntropy(255), weights=weights)
    np.testing.assert_array_equal(outputs.data, net.scores(on_grid(x)).data[:, :5, :6])
    expected = cross_entropy(outputs.data, labels[:, ::8, ::8], weights[:, ::8, ::8])
    assert list(losses) == ["pixels"]
    np.testing.assert_allclose(losses["pixels"].data, expected, rtol=1e-12)
    assert net(x).shape == (2, 35, 42, 4)  # the answer is for all pixels still


@pytest.mark.parametrize("network", [V2_VGG, V2_RESNET], ids=lambda network: network[0])
@pytest.mark.parametrize("shrunk", [False, True])
def test_a_loss_for_each_scale(network, batch, shrunk):
    x, labels, weights = batch
    net, alone = (create(network, multi_scale=several, shrunk_labels=shrunk) for several in (True, False))
    outputs = net.outputs(x)
    losses = net.losses(outputs, labels, CrossEntropy(255), weights=weights)
    assert list(losses) == ["pixels", "scale_1", "scale_0.75", "scale_0.5"]
    stride = 8 if shrunk else 1
    seen = labels[:, ::stride, ::stride], weights[:, ::stride, ::stride]
    fused, single = (some.outputs(x).logits if some is net else some.outputs(x) for some in (net, alone))
    if not shrunk:
        np.testing.assert_array_equal(fused.data, net(x).data)
    np.testing.assert_allclose(losses["pixels"].data, cross_entropy(fused.data, *seen), rtol=1e-12)
    np.testing.assert_allclose(losses["scale_1"].data, cross_entropy(single.data, *seen), rtol=1e-12)
    for scale, logits in zip((0.75, 0.5), outputs.scales[1:], strict=True):
        assert logits.shape == fused.shape
        np.testing.assert_allclose(losses[f"scale_{scale}"].data, cross_entropy(logits.data, *seen), rtol=1e-12)
    if shrunk:  # fused on that grid, by the maximum
        largest = np.max([logits.data for logits in outputs.scales], axis=0)
        np.testing.assert_allclose(outputs.logits.data, largest, rtol=1e-12)


def test_the_smaller_scales_are_of_smaller_images(batch):
    x, _, _ = batch
    net, alone = create(V2_RESNET, multi_scale=True, shrunk_labels=True), create(V2_RESNET)
    smaller = ops.resize(on_grid(x), (21, 25), align_corners=True)[0]  # (41 - 1) / 2 + 1, (49 - 1) / 2 + 1
    expected = ops.resize(alone.scores(smaller).data, (6, 7), align_corners=True)[0]
    np.testing.assert_allclose(net.outputs(x).scales[2].data, expected[:, :5, :6], rtol=1e-10)


@pytest.mark.parametrize("shrunk", [False, True])
def test_the_losses_reach_all_parameters(batch, shrunk):
    x, labels, _ = batch
    net = create(V2_RESNET, multi_scale=True, shrunk_labels=shrunk).train()
    total(net.losses(net.outputs(x), labels, CrossEntropy(255))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and np.any(parameter.grad), name
