"""Layers: what each hands to its operator, running statistics, dropout's counter, gradients of a whole network."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.gradcheck import check_vjp
from tinyseg.tape import no_grad


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the oracle of this test")


def channels_first(torch, x):
    return torch.tensor(np.moveaxis(x, -1, 1).copy())


def channels_last(y):
    return np.moveaxis(y.detach().numpy(), 1, -1)


# ----------------------------------------------------------------------------------------- layers against PyTorch


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": (2, 1), "padding": (1, 2)}, {"dilation": (1, 2), "padding": 2, "groups": 2}],
)
def test_conv2d(torch, rng, options, bias):
    layer = nn.Conv2d(4, 6, (3, 2), bias=bias, rng=rng, **options).astype(np.float64)
    theirs = torch.nn.Conv2d(4, 6, (3, 2), bias=bias, dtype=torch.float64, **options)
    theirs.weight.data = torch.tensor(layer.weight.data.transpose(3, 2, 0, 1).copy())
    if bias:
        layer.bias.data = rng.standard_normal(6)
        theirs.bias.data = torch.tensor(layer.bias.data)
    x = rng.standard_normal((2, 7, 9, 4))
    np.testing.assert_allclose(
        layer(x).data, channels_last(theirs(channels_first(torch, x))), rtol=1e-11, atol=1e-12
    )
    assert layer.num_parameters() == sum(p.numel() for p in theirs.parameters())


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)},
        {"groups": 2, "dilation": 2, "bias": False},
    ],
)
def test_conv_transpose2d(torch, rng, options):
    layer = nn.ConvTranspose2d(4, 6, (3, 2), rng=rng, **options).astype(np.float64)
    theirs = torch.nn.ConvTranspose2d(4, 6, (3, 2), dtype=torch.float64, **options)
    # PyTorch: (in, out / groups, R, S); here (R, S, out / groups, in).
    theirs.weight.data = torch.tensor(layer.weight.data.transpose(3, 2, 0, 1).copy())
    if layer.bias is not None:
        layer.bias.data = rng.standard_normal(6)
        theirs.bias.data = torch.tensor(layer.bias.data)
    x = rng.standard_normal((2, 4, 5, 4))
    np.testing.assert_allclose(
        layer(x).data, channels_last(theirs(channels_first(torch, x))), rtol=1e-11, atol=1e-12
    )


@pytest.mark.oracle
def test_linear(torch, rng):
    layer = nn.Linear(4, 6, rng=rng).astype(np.float64)
    theirs = torch.nn.Linear(4, 6, dtype=torch.float64)
    theirs.weight.data = torch.tensor(layer.weight.data.T.copy())
    layer.bias.data = theirs.bias.detach().numpy().copy()
    x = rng.standard_normal((2, 3, 4))
    np.testing.assert_allclose(layer(x).data, theirs(torch.tensor(x)).detach().numpy(), rtol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("momentum", [0.1, 0.4])
def test_batch_norm_moves_its_running_statistics_as_torch_does(torch, rng, momentum):
    layer = nn.BatchNorm2d(3, eps=1e-3, momentum=momentum).astype(np.float64)
    theirs = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=momentum, dtype=torch.float64)
    layer.weight.data, layer.bias.data = rng.standard_normal(3), rng.standard_normal(3)
    theirs.weight.data, theirs.bias.data = torch.tensor(layer.weight.data), torch.tensor(layer.bias.data)
    for step in range(6):
        if step == 4:
            layer.eval()
            theirs.eval()
        x = 2 * rng.standard_normal((2, 2, 3, 3)) + [1.0, -5.0, 0.0]
        np.testing.assert_allclose(
            layer(x).data, channels_last(theirs(channels_first(torch, x))), rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(layer.running_mean.data, theirs.running_mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(layer.running_var.data, theirs.running_var.numpy(), rtol=1e-12)


@pytest.mark.oracle
def test_other_normalisations(torch, rng):
    x = rng.standard_normal((2, 3, 5, 6))
    y = nn.GroupNorm(3, 6, eps=1e-3).astype(np.float64)(x)
    expected = torch.nn.functional.group_norm(channels_first(torch, x), 3, eps=1e-3)
    np.testing.assert_allclose(y.data, channels_last(expected), rtol=1e-10, atol=1e-12)

    y = nn.LocalResponseNorm(5, alpha=0.3, beta=0.6, k=2.0)(x)
    expected = torch.nn.functional.local_response_norm(channels_first(torch, x), 5, alpha=0.3, beta=0.6, k=2.0)
    np.testing.assert_allclose(y.data, channels_last(expected), rtol=1e-10)


@pytest.mark.oracle
def test_pooling_resizing_and_activations(torch, rng):
    x = rng.standard_normal((2, 6, 9, 3))
    theirs = channels_first(torch, x)
    tf = torch.nn.functional
    for layer, expected in [
        (nn.MaxPool2d(2), tf.max_pool2d(theirs, 2)),
        (nn.MaxPool2d((3, 2), stride=2, padding=1, ceil_mode=True), tf.max_pool2d(theirs, (3, 2), 2, 1, 1, True)),
        (nn.AvgPool2d(3, stride=(2, 1), padding=1), tf.avg_pool2d(theirs, 3, (2, 1), 1)),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), tf.avg_pool2d(theirs, 3, 3, 1, False, False)),
        (nn.AdaptiveAvgPool2d((4, 2)), tf.adaptive_avg_pool2d(theirs, (4, 2))),
        (nn.AdaptiveMaxPool2d(3), tf.adaptive_max_pool2d(theirs, 3)),
        (nn.GlobalAvgPool2d(), tf.adaptive_avg_pool2d(theirs, 1)),
        (nn.Resize(2), tf.interpolate(theirs, scale_factor=2, mode="bilinear")),
        (nn.Resize(3, align_corners=True), tf.interpolate(theirs, (18, 27), mode="bilinear", align_corners=True)),
        (nn.Resize(2, mode="nearest"), tf.interpolate(theirs, scale_factor=2, mode="nearest")),
        (nn.ReLU(), torch.relu(theirs)),
        (nn.LeakyReLU(0.2), tf.leaky_relu(theirs, 0.2)),
        (nn.Sigmoid(), torch.sigmoid(theirs)),
        (nn.Tanh(), torch.tanh(theirs)),
        (nn.Identity(), theirs),
    ]:
        y = layer(x)
        y = y if isinstance(y, np.ndarray) else y.data
        np.testing.assert_allclose(y, channels_last(expected), rtol=1e-12, atol=1e-14, err_msg=repr(layer))


# --------------------------------------------------------------------------------------------------- batch norm


def test_batch_norm_by_hand():
    """One channel with the values 0 and 4: mean 2, variance 4 (biased) and 8 (unbiased)."""
    layer = nn.BatchNorm2d(1, eps=0.0, momentum=0.5)
    x = np.array([0.0, 4.0], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(layer(x).data.reshape(-1), [-1, 1], rtol=1e-6)
    np.testing.assert_allclose(layer.running_mean.data, [1])  # 0.5 * 0 + 0.5 * 2
    np.testing.assert_allclose(layer.running_var.data, [4.5])  # 0.5 * 1 + 0.5 * 8
    layer.eval()
    np.testing.assert_allclose(layer(x).data.reshape(-1), [-1 / 4.5**0.5, 3 / 4.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(layer.running_mean.data, [1])


def test_frozen_batch_norm_uses_and_keeps_its_running_statistics(rng):
    x = rng.standard_normal((2, 3, 4, 2)).astype(np.float32)
    layer = nn.BatchNorm2d(2, frozen=True)
    y = layer(x)
    np.testing.assert_allclose(y.data, x, rtol=1e-4)  # mean 0, variance 1, but for eps
    np.testing.assert_array_equal(layer.running_mean.data, 0)
    y.backward(np.ones_like(x))
    np.testing.assert_array_equal(layer.bias.grad, [24, 24])  # still learned
    layer.frozen = False
    layer(x)
    assert layer.running_mean.data.any()
    assert layer.running_mean.data.dtype == np.float32


def test_the_relu_of_batch_norm(rng):
    x = rng.standard_normal((2, 3, 4, 2)).astype(np.float32)
    for mode in (True, False):
        plain, fused = (nn.BatchNorm2d(2, relu=relu).train(mode)(x) for relu in (False, True))
        np.testing.assert_array_equal(fused.data, np.maximum(plain.data, 0))


# ------------------------------------------------------------------------------------------------------- dropout


def test_dropout_draws_a_new_mask_at_each_call_and_none_in_evaluation(rng):
    layer = nn.Dropout(0.5, rng=rng)
    x = np.ones((1, 4, 5, 30), np.float32)
    first, second = layer(x).data, layer(x).data
    assert (first != second).any()
    assert set(np.unique(first)) == {0, 2}
    layer.eval()
    assert layer(x) is x
    assert layer.calls.data == 2


def test_dropout_resumes_with_the_masks_of_an_uninterrupted_run(rng):
    x = np.ones((1, 4, 5, 30), np.float32)
    layer = nn.Dropout(0.5, rng=rng)
    layer(x)
    resumed = nn.Dropout(0.5, rng=np.random.default_rng(99))
    resumed.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(resumed(x).data, layer(x).data)


def test_dropout_of_channels(rng):
    layer = nn.Dropout(0.5, channels=True, rng=rng)
    y = layer(np.ones((2, 4, 5, 30), np.float32)).data
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert repr(layer) == "Dropout(0.5, whole channels)"


def test_two_dropouts_of_a_network_differ(rng):
    one, other = nn.Dropout(0.5, rng=rng), nn.Dropout(0.5, rng=rng)
    assert one.seed.data != other.seed.data


# ------------------------------------------------------------------------------------ gradients of a whole network


class Small(nn.Module):
    """Every kind of layer with parameters, a skip, and dropout."""

    def __init__(self, rng):
        self.down = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(6, relu=True))
        self.pool = nn.AvgPool2d(2)
        self.deep = nn.Sequential(
            nn.Conv2d(6, 6, (3, 1), padding="same", groups=3, rng=rng), nn.GroupNorm(2, 6), nn.Tanh()
        )
        self.drop = nn.Dropout(0.3, rng=rng)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, rng=rng)
        self.gate = nn.Sequential(nn.GlobalAvgPool2d(), nn.Linear(4, 4, rng=rng), nn.Sigmoid())
        self.classifier = nn.Conv2d(10, 3, 1, rng=rng)

    def forward(self, x):
        skip = self.down(x)
        x = self.up(self.drop(self.deep(self.pool(skip))))
        return self.classifier(F.concat([skip, F.mul(self.gate(x), x)]))


def test_gradients_through_a_whole_network(rng):
    network = Small(rng).astype(np.float64)
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    state = network.state_dict()

    def forward(x, *arrays):
        network.load_state_dict(state)  # the same dropout mask each time
        for parameter, array in zip(parameters, arrays, strict=True):
            parameter.data, parameter.grad = array, None
        image = nn.Parameter(x)
        return network(image).data, (image, arrays)

    def backward(dy, cache):
        image, arrays = cache
        forward(image.data, *arrays)
        network.load_state_dict(state)
        for parameter, array in zip(parameters, arrays, strict=True):
            parameter.data = array
        network(image).backward(dy)
        gradient, image.grad = image.grad, None
        return (gradient, *(parameter.grad for parameter in parameters))

    inputs = (rng.standard_normal((2, 6, 4, 2)), *(parameter.data for parameter in parameters))
    check_vjp(forward, backward, inputs, rtol=1e-5, skip_kinks=True)


def test_a_frozen_layer_gets_no_gradient_and_passes_one_on(rng):
    first, second = nn.Conv2d(2, 3, 1, rng=rng), nn.Conv2d(3, 1, 1, rng=rng)
    for parameter in second.parameters():
        parameter.requires_grad = False
    y = second(first(rng.standard_normal((1, 2, 2, 2)).astype(np.float32)))
    y.backward(np.ones_like(y.data))
    assert second.weight.grad is None
    assert first.weight.grad.any()


def test_no_grad_in_a_network(rng):
    layer = nn.Conv2d(2, 3, 1, rng=rng)
    with no_grad():
        assert not layer(np.zeros((1, 2, 2, 2), np.float32)).requires_grad


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda rng: nn.Conv2d(3, 4, 3, groups=2, rng=rng), ValueError, "groups=2 must divide in_channels=3"),
        (lambda rng: nn.Conv2d(0, 4, 3, rng=rng), ValueError, "Conv2d: channels and groups must be at least 1"),
        (lambda rng: nn.Conv2d(3, 4, 0, rng=rng), ValueError, "Conv2d: kernel must be at least 1, got 0"),
        (lambda rng: nn.ConvTranspose2d(4, 3, 3, groups=2, rng=rng), ValueError, "ConvTranspose2d: groups=2"),
        (lambda rng: nn.GroupNorm(4, 6), ValueError, "GroupNorm: groups=4 must divide"),
        (lambda rng: nn.Dropout(1.0, rng=rng), ValueError, r"Dropout: rate must be in \[0, 1\), got 1.0"),
        (lambda rng: nn.Dropout(0.5), TypeError, r"Dropout draws random masks: pass rng="),
    ],
)
def test_errors(rng, make, error, message):
    with pytest.raises(error, match=message):
        make(rng)
