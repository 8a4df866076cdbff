"""CRF-RNN: the parts and what they see, gradients through the whole network, tiles, and learning."""

import numpy as np
import pytest

from tinyseg import crf, models, nn
from tinyseg import functional as F
from tinyseg.models.crf_rnn import CRFRNN
from tinyseg.models.inference import predict_logits
from tinyseg.models.summary import sketch
from tinyseg.models.unet import UNet
from tinyseg.tape import Tensor, no_grad

MEAN, STD = (0.4, 0.5, 0.45), (0.25, 0.2, 0.3)


def small(**settings):
    settings = {"classes": 3, "base": 2, "depth": 1, "mean": MEAN, "std": STD} | settings
    return models.create("crf_rnn_unet", 3, rng=np.random.default_rng(1), **settings)


def normalised(image):
    return ((image / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def test_parameter_counts():
    def count(name, classes=21):
        return sketch(models.create, name, 3, classes).num_parameters()

    assert count("crf_rnn_fcn8s") == count("fcn8s") + 1323
    assert count("crf_rnn_unet", 11) == count("unet_padded", 11) + 3 * 11**2


def test_it_is_the_network_and_then_the_crf(rng):
    images = rng.integers(0, 256, (2, 9, 14, 3), np.uint8)
    net = small(iterations=2).train()
    y = net(normalised(images)).data
    logits = net.trunk(normalised(images)).data
    np.testing.assert_array_equal(y, net.crf(logits, images).data)
    for n in range(2):
        refined = crf.dense_crf(images[n], logits[n], "crf_rnn", given="logits", iterations=2)
        np.testing.assert_array_equal(y[n].argmax(axis=-1), refined.argmax(axis=-1))


def test_the_colours_of_an_image_are_found_again(rng):
    images = rng.integers(0, 256, (1, 5, 6, 3), np.uint8)
    net = small()
    np.testing.assert_array_equal(net.colours(normalised(images), (5, 6)), images)
    np.testing.assert_array_equal(net.colours(normalised(images), (2, 3)), images[:, 1:3, 1:4])
    bright = net.colours(np.full((1, 1, 1, 3), 9, np.float32), (1, 1))
    np.testing.assert_array_equal(bright, np.full((1, 1, 1, 3), 255))
    plain = CRFRNN(UNet(1, 2, base=1, depth=1, variant="padded", rng=rng))
    np.testing.assert_array_equal(plain.colours(np.full((1, 1, 1, 1), 0.2), (1, 1)), [[[[51]]]])


def test_a_network_with_unpadded_convolutions_can_be_in_front(rng):
    trunk = UNet(3, 2, base=1, depth=1, variant="release", rng=rng)
    net = CRFRNN(trunk, iterations=1)
    assert net.context == trunk.context
    assert net.input_side(5) == trunk.input_side(5)
    image = rng.random((11, 13, 3)).astype(np.float32)
    with no_grad():
        assert predict_logits(net, image).shape == (11, 13, 2)


def test_gradient_through_the_whole_network(check_network_gradient):
    check_network_gradient(small(weights="diagonal", start="pydensecrf", iterations=2), (6, 5), rtol=1e-3)


def test_it_learns_to_trust_colours(rng):
    """Colours decide the labels, but the logits are noise: what the loss asks for is more of the CRF."""
    labels = (np.arange(16)[:, None] // 8 + np.zeros((16, 12), int))[None]
    images = np.where(labels[..., None] == 1, 200, 50).astype(np.uint8).repeat(3, axis=-1)
    logits = (np.eye(2)[labels] + 1.5 * rng.standard_normal((1, 16, 12, 2))).astype(np.float32)
    layer = nn.CRFRNN(2, start=crf.parameters("crf_rnn", appearance_weight=0.1, smoothness_weight=0.1))
    losses = []
    for _ in range(15):
        for parameter in layer.parameters():
            parameter.grad = None
        loss = F.cross_entropy(layer(Tensor(logits), images), labels)
        loss.backward()
        losses.append(float(loss.data))
        for parameter in layer.parameters():
            parameter.data = parameter.data - 0.5 * parameter.grad
    assert losses[-1] < 0.5 * losses[0]
    assert np.trace(layer.appearance_weight.data) > 0.5


def test_errors(rng):
    with pytest.raises(ValueError, match="std must be one number, or 3, one for each channel"):
        small(std=(0.1, 0.2))
    with pytest.raises(ValueError, match="has no setting 'depht'"):
        small(depht=2)
