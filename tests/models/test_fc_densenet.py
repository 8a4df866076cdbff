"""FC-DenseNet: the published counts and channels, any input size, batch statistics, gradients."""

import numpy as np
import pytest

from tinyseg import models
from tinyseg.models import fc_densenet
from tinyseg.models.fc_densenet import DenseBlock, FCDenseNet, TransitionDown, TransitionUp
from tinyseg.tape import Tensor


def small(classes=3, **settings):
    settings = {"layers": (1, 2, 2), "growth": 2, "first": 3} | settings
    return FCDenseNet(2, classes, **settings, rng=np.random.default_rng(1))


# From the paper's tables, counted for 11 and 12 classes: learned, and with the statistics of batch normalisation.
COUNTS = {
    "fc_densenet56": (1_376_795, 1_397_963, 1_376_988),
    "fc_densenet67": (3_463_243, 3_502_923, 3_463_532),
    "fc_densenet103": (9_322_091, 9_425_163, 9_322_348),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    learned, with_statistics, for_12_classes = COUNTS[name]
    net = models.create(name, 3, 11)
    statistics = [buffer.data.size for key, buffer in net.named_buffers() if "running" in key]
    assert net.num_parameters() == learned
    assert net.num_parameters() + sum(statistics) == with_statistics
    assert models.create(name, 3, 12).num_parameters() == for_12_classes


@pytest.mark.parametrize(
    ("name", "convolutions", "channels"),
    [
        ("fc_densenet56", 56, [96, 144, 192, 240, 288, 336, 384, 336, 288, 240, 192]),
        ("fc_densenet67", 67, [128, 208, 288, 368, 448, 528, 608, 528, 448, 368, 288]),
        ("fc_densenet103", 103, [112, 192, 304, 464, 656, 896, 1088, 816, 576, 384, 256]),
    ],
)
def test_layers_and_channels_of_the_paper(name, convolutions, channels):
    net = models.create(name, 3, 11)
    weights = [value.data for key, value in net.named_parameters() if value.data.ndim == 4]
    assert len(weights) == convolutions
    blocks = [*net.down_blocks, net.bottleneck, *net.up_blocks]
    growth = blocks[0].layers[0].conv.out_channels
    assert [block.layers[-1].conv.in_channels + growth for block in blocks] == channels
    assert net.classifier.in_channels == channels[-1]


def test_sizes_of_the_figure(monkeypatch):
    """At 360 x 480, and 45 rows are odd: pooling drops one, and the transposed convolution brings it back."""
    down, up = [], []
    monkeypatch.setattr(TransitionDown, "forward", recording(TransitionDown.forward, down))
    monkeypatch.setattr(TransitionUp, "forward", recording(TransitionUp.forward, up))
    net = FCDenseNet(3, 2, layers=(1,) * 6, growth=1, first=1, rng=np.random.default_rng(0)).eval()
    assert net(np.zeros((1, 360, 480, 3), np.float32)).shape == (1, 360, 480, 2)
    assert down == [(180, 240), (90, 120), (45, 60), (22, 30), (11, 15)]
    assert up == [(22, 30), (45, 60), (90, 120), (180, 240), (360, 480)]


def recording(forward, sizes):
    def record(self, *inputs):
        y = forward(self, *inputs)
        sizes.append(y.shape[1:3])
        return y

    return record


def test_only_new_maps_go_up():
    net = small()
    assert [up.deconv.in_channels for up in net.transitions_up] == [2 * 2, 2 * 2]
    assert [up.deconv.out_channels for up in net.transitions_up] == [2 * 2, 2 * 2]


def test_a_dense_block_by_hand():
    """Each layer sees the input and all maps before it, in this order."""
    rng = np.random.default_rng(0)
    block = DenseBlock(2, 3, 1, dropout=0.0, batch_always=False, rng=rng).eval()
    for i, layer in enumerate(block.layers):  # each layer adds its inputs up, weighted 1, 10, 100, ...
        layer.norm.eps = 0.0
        layer.conv.weight.data[...] = 0
        layer.conv.weight.data[1, 1, :, 0] = 10.0 ** np.arange(2 + i)
    x = np.array([1.0, 2.0], np.float32).reshape(1, 1, 1, 2)
    new = [float(maps.data[0, 0, 0, 0]) for maps in block(Tensor(x))]
    assert new == [21, 2121, 2123121]


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (7, 18), (13, 6)])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_size_from_the_smallest(size, batch):
    net = small()
    assert net.smallest == 4
    x = np.random.default_rng(0).random((batch, *size, 2), np.float32)
    for training in (True, False):
        assert net.train(training)(x).shape == (batch, *size, 3)


def test_batch_statistics_in_evaluation():
    x = np.random.default_rng(0).standard_normal((2, 9, 8, 2)).astype(np.float32)
    net = small(dropout=0.0)
    training = net.train()(x).data
    np.testing.assert_array_equal(net.eval()(x).data, training)
    assert not np.allclose(net(x[:1]).data, training[:1], atol=1e-4)  # the second image matters for the first
    before = net.state_dict()
    net(x)
    assert all(np.array_equal(value, before[name]) for name, value in net.state_dict().items())

    assert net.statistics == "batch"
    net.statistics = "running"
    assert net.statistics == "running"
    assert not np.allclose(net(x).data, training, atol=1e-4)
    np.testing.assert_allclose(net(x[:1]).data, net(x).data[:1], atol=1e-5)
    same = small(dropout=0.0, statistics="running").eval()
    same.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(same(x).data, net(x).data)


def test_dropout_only_in_training():
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 2)).astype(np.float32)
    net = small()
    assert not np.array_equal(net(x).data, net(x).data)
    net.eval()
    np.testing.assert_array_equal(net(x).data, net(x).data)


def test_biases_and_initial_weights():
    """He's uniform distribution with the limit sqrt(6 / fan in), and biases of zero."""
    net = small()
    weight = net.first.weight.data
    assert np.abs(weight).max() <= np.sqrt(6 / 18) and np.abs(weight).max() > 0.8 * np.sqrt(6 / 18)
    for layer in (net.first, net.down_blocks[0].layers[0].conv, net.transitions_up[0].deconv):
        assert not layer.bias.data.any()


@pytest.mark.parametrize("statistics", fc_densenet.STATISTICS)
def test_gradient_through_the_whole_network(statistics, check_network_gradient):
    check_network_gradient(small(statistics=statistics), (9, 6))
    check_network_gradient(small(statistics=statistics).eval(), (8, 7))


def test_errors():
    with pytest.raises(ValueError, match=r"3 x 9 pixels is too small to be halved 2 times.*at least 4 x 4"):
        small()(np.zeros((1, 3, 9, 2), np.float32))
    with pytest.raises(ValueError, match=r"images must have the shape \(N, H, W, 2\), got .*, 3\)"):
        small()(np.zeros((1, 8, 9, 3), np.float32))
    with pytest.raises(ValueError, match="growth must be at least 1, got 0"):
        small(growth=0)
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        small(classes=0)
    for layers in ((), (2, 0)):
        with pytest.raises(ValueError, match="layers must hold the number of layers"):
            small(layers=layers)
    with pytest.raises(ValueError, match="statistics must be one of batch, running, got 'population'"):
        small(statistics="population")
    with pytest.raises(ValueError, match="statistics must be one of"):
        small().statistics = "none"


@pytest.mark.slow
def test_learns_four_images_by_heart(learn_by_heart):
    """With running statistics: those of the batch are of all four images in training, and of one in evaluation."""
    settings = {"layers": (3, 3, 3, 3), "growth": 12, "first": 24, "dropout": 0.0, "statistics": "running"}
    net = FCDenseNet(3, 11, **settings, rng=np.random.default_rng(0))
    assert learn_by_heart(net, size=(72, 96), part=0.5, lr=5e-3, steps=150) >= 0.95
