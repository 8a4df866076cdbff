"""U-Net: the figure's sizes and counts, any input size, gradients through the whole network, overlapping tiles."""

import numpy as np
import pytest

from tinyseg import models
from tinyseg.gradcheck import check_vjp
from tinyseg.models.inference import predict_logits, predict_probabilities
from tinyseg.models.unet import DoubleConv, UNet
from tinyseg.tape import Tensor


def small_unet(variant="paper", **settings):
    settings = {"in_channels": 2, "classes": 3, "base": 2, "depth": 2} | settings
    return UNet(**settings, variant=variant, rng=np.random.default_rng(1))


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("paper", 31_030_658), ("release", 31_100_354)],  # the facts of the paper and of the published network
)
def test_parameter_counts(variant, parameters):
    assert UNet(1, 2, variant=variant, rng=np.random.default_rng(0)).num_parameters() == parameters


def test_sizes_of_the_figure(monkeypatch):
    sides = []
    forward = DoubleConv.forward

    def record(self, x):
        sides.append(x.shape[1])
        y = forward(self, x)
        sides.append(y.shape[1])
        return y

    monkeypatch.setattr(DoubleConv, "forward", record)
    net = UNet(1, 2, base=1, rng=np.random.default_rng(0)).eval()
    logits = net(np.zeros((1, 572, 572, 1), np.float32))
    down = [572, 568, 284, 280, 140, 136, 68, 64, 32, 28]
    up = [56, 52, 104, 100, 200, 196, 392, 388]
    assert sides == down + up
    assert logits.shape == (1, 388, 388, 2)


def test_valid_input_sides():
    net = UNet(1, 2, base=1, rng=np.random.default_rng(0))
    # The sides of the facts: 16 n + 60 with n >= 8, the output 184 less.
    assert net.context == 92
    assert [net.input_side(out) for out in (1, 4, 5, 20, 388, 389)] == [188, 188, 204, 204, 572, 588]
    for side in (188, 204):
        assert net.eval()(np.zeros((1, side, side, 1), np.float32)).shape[1] == side - 184


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (13, 16), (33, 18)])
@pytest.mark.parametrize("batch", [1, 2])
def test_padded_variant_answers_for_every_pixel(size, batch):
    net = small_unet("padded")
    x = np.random.default_rng(0).random((batch, *size, 2), np.float32)
    for training in (True, False):
        logits = net.train(training)(x)
        assert logits.shape == (batch, *size, 3)
        assert np.isfinite(logits.data).all()


@pytest.mark.parametrize("variant", ["paper", "release"])
@pytest.mark.parametrize("size", [(44, 44), (45, 47), (46, 53)])
def test_unpadded_variants_take_any_size_from_the_smallest(variant, size):
    net = small_unet(variant)
    assert net.input_side(1) == 44
    for batch in (1, 2):
        x = np.random.default_rng(0).random((batch, *size, 2), np.float32)
        for training in (True, False):
            logits = net.train(training)(x)
            assert logits.shape == (batch, *(4 * ((side - 44) // 4) + 4 for side in size), 3)


@pytest.mark.parametrize("size", [(43, 60), (60, 43)])
def test_too_small_an_image(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels is too small.*at least 44 x 44.*padded"):
        small_unet()(np.zeros((1, *size, 2), np.float32))


@pytest.mark.parametrize("variant", ["paper", "release", "padded"])
def test_gradient_through_the_whole_network(variant):
    """A random upstream gradient, and a random direction over the input and each of the parameters."""
    net = small_unet(variant).astype(np.float64)
    parameters = list(net.parameters())
    size = (14, 11) if variant == "padded" else (44, 49)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, *size, 2))
    for parameter in parameters:  # where a bias of 0 meets dropped inputs, a ReLU would sit on its kink
        parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape)

    def forward(*values):
        for parameter, value in zip(parameters, values[1:], strict=True):
            parameter.data, parameter.grad = value, None
        for dropout in net.dropout:
            if hasattr(dropout, "calls"):
                dropout.calls.data = np.array(0)  # the same mask each time
        image = Tensor(values[0], requires_grad=True)
        logits = net(image)
        return logits.data, (image, logits)

    def backward(dy, cache):
        image, logits = cache
        image.grad = None
        for parameter in parameters:
            parameter.grad = None
        logits.backward(dy)
        return (image.grad, *(parameter.grad for parameter in parameters))

    # A step of 1e-7 meets few kinks of the many ReLUs; what it meets is within the tolerance.
    inputs = (x, *(parameter.data for parameter in parameters))
    check_vjp(forward, lambda dy, _: backward(dy, forward(*inputs)[1]), inputs, eps=1e-7, rtol=1e-4)


def test_tiles_fit_without_a_seam():
    """Each pixel of an unpadded network sees the same context in a tile and in one huge image."""
    net = small_unet()
    image = np.random.default_rng(3).standard_normal((37, 50, 2)).astype(np.float32)
    whole = predict_logits(net, image)
    assert whole.shape == (37, 50, 3)
    # Tiles of a multiple of 4 keep the phase of the poolings.
    for tile in (4, 12, 20):
        np.testing.assert_allclose(predict_logits(net, image, tile=tile), whole, atol=1e-5)


def test_tiled_padded_network_equals_the_whole_where_the_margin_is_wide_enough():
    net = small_unet("padded").eval()
    image = np.random.default_rng(3).standard_normal((48, 64, 2)).astype(np.float32)
    whole = net(image[None]).data[0]
    np.testing.assert_allclose(predict_logits(net, image), whole, atol=1e-6)
    tiled = predict_logits(net, image, tile=16, margin=24)
    np.testing.assert_allclose(tiled[24:-24, 24:-24], whole[24:-24, 24:-24], atol=1e-5)


def test_probabilities_and_mode():
    net = small_unet("padded")
    probabilities = predict_probabilities(
        net, np.random.default_rng(0).random((9, 6, 2), np.float32), tile=4, margin=4
    )
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_prediction_errors():
    net = small_unet("padded")
    with pytest.raises(ValueError, match=r"shape \(H, W, 2\) for this network, got \(9, 6, 3\)"):
        predict_logits(net, np.zeros((9, 6, 3), np.float32))
    with pytest.raises(ValueError, match="tile must be at least 1"):
        predict_logits(net, np.zeros((9, 6, 2), np.float32), tile=0)
    with pytest.raises(ValueError, match="margin must not be negative"):
        predict_logits(net, np.zeros((9, 6, 2), np.float32), margin=-1)


def test_create():
    net = models.create("unet_padded", in_channels=3, classes=5, base=2, depth=1)
    assert net(np.zeros((1, 6, 7, 3), np.float32)).shape == (1, 6, 7, 5)
    assert models.create("unet").variant == "paper"
    again = models.create("unet_padded", in_channels=3, classes=5, base=2, depth=1)
    for (name, ours), (_, theirs) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert np.array_equal(ours.data, theirs.data), name


def test_create_errors():
    with pytest.raises(ValueError, match=r"no model 'unett'; did you mean 'unet'"):
        models.create("unett")
    with pytest.raises(ValueError, match=r"unet_padded has no setting 'width'; it has base, depth"):
        models.create("unet_padded", width=3)
    with pytest.raises(ValueError, match=r"unknown variant 'same'"):
        models.create("unet", variant="same")
    with pytest.raises(ValueError, match=r"depth must be at least 1, got 0"):
        models.create("unet", depth=0)


@pytest.mark.slow
def test_learns_four_images_by_heart(learn_by_heart):
    net = UNet(3, 11, base=16, depth=3, variant="padded", rng=np.random.default_rng(0))
    assert learn_by_heart(net, lr=5e-3) >= 0.95
