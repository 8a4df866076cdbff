"""Summaries: sizes as the operators make them, costs counted by hand, receptive fields, names, no effects."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import models, nn
from tinyseg.models.summary import RULES, sketch, summarise
from tinyseg.tape import Tensor

RNG = np.random.default_rng(0)


class Network(nn.Module):
    """Anything: a function of the image."""

    in_channels = 2

    def __init__(self, function):
        self.function = function

    def forward(self, x):
        return self.function(x)


def rows_of(function, size=(9, 7)):
    return summarise(Network(function), *size)


def weight(*shape):
    return nn.Parameter(RNG.standard_normal(shape).astype(np.float32))


# Each function of the rules, with options that matter for the size.
FUNCTIONS = {
    "conv2d": lambda x: F.conv2d(x, weight(3, 2, 1, 4), weight(4), stride=(2, 1), padding=(1, 0, 2, 1), groups=2),
    "conv2d dilated": lambda x: F.conv2d(x, weight(3, 3, 2, 4), dilation=(2, 3), padding="same"),
    "conv_transpose2d": lambda x: F.conv_transpose2d(
        x, weight(3, 4, 3, 2), stride=(3, 2), padding=(1, 0), output_padding=(2, 1)
    ),
    "conv_transpose2d same": lambda x: F.conv_transpose2d(
        x, weight(4, 4, 1, 2), stride=2, padding="same", groups=2
    ),
    "linear": lambda x: F.linear(x, weight(2, 5), weight(5)),
    "encoding": lambda x: F.encoding(x, weight(4, 2), weight(4)),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, stride=2, ceil_mode=True),
    "avg_pool2d": lambda x: F.avg_pool2d(x, (2, 3), padding=1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2),
    "global_avg_pool2d": lambda x: F.global_avg_pool2d(x),
    "global_max_pool2d": lambda x: F.global_max_pool2d(x),
    "resize": lambda x: F.resize(x, scale=1.7),
    "resize to": lambda x: F.resize(x, (4, 20), align_corners=True),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), mode="reflect"),
    "crop": lambda x: F.crop(x, (1, 2, 0, 3)),
    "crop to": lambda x: F.crop(x, size=(4, 3), offset=(2, 1)),
    "slice": lambda x: F.slice(x, {1: (1, -2), -1: (1, None)}),
    "concat": lambda x: F.concat([x, F.relu(x), x], axis=2),
    "reshape": lambda x: F.reshape(x, (1, -1)),
    "refine": lambda x: F.refine(
        x, weight(2), weight(2, 2), weight(3), images=np.zeros((1, 9, 7, 3), np.uint8), iterations=2
    ),
    "add": lambda x: F.add(x, F.global_avg_pool2d(x)),
    "mul": lambda x: F.mul(x, 2.0),
    "batch_norm": lambda x: F.batch_norm(x, weight(2), weight(2), relu=True)[0],
    "group_norm": lambda x: F.group_norm(x, weight(2), weight(2), groups=1),
    "local_response_norm": lambda x: F.local_response_norm(x),
    "dropout": lambda x: F.dropout(x, rate=0.5, seed=1),
    "relu": lambda x: F.relu(x),
    "leaky_relu": lambda x: F.leaky_relu(x, slope=0.1),
    "sigmoid": lambda x: F.sigmoid(x),
    "tanh": lambda x: F.tanh(x),
    "softmax": lambda x: F.softmax(x),
    "log_softmax": lambda x: F.log_softmax(x),
}


def test_every_rule_is_tested():
    assert {name.split()[0] for name in FUNCTIONS} == set(RULES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sizes_are_those_of_the_operator(name, backend):
    x = RNG.standard_normal((1, 9, 7, 2)).astype(np.float32)
    real = FUNCTIONS[name](x)
    row = rows_of(FUNCTIONS[name])[-1]
    assert row.size == real.shape[1:]
    assert row.memory == real.data.nbytes
    assert row.operator.split()[0] == name.split()[0]


def seen_by_a_cell(function, size, channels=1):
    """The longest run of rows and of columns between pixels that one cell of the result depends on."""
    x = Tensor(np.random.default_rng(1).standard_normal((1, *size, channels)), requires_grad=True)
    y = function(x)
    longest = [0, 0]
    for cell in np.ndindex(*y.shape[1:3]):
        dy = np.zeros(y.shape)
        dy[0, cell[0], cell[1]] = 1
        x.grad = None
        function(x).backward(dy)
        seen = np.nonzero(np.abs(x.grad).sum(axis=(0, 3)))
        longest = [max(old, new.max() - new.min() + 1) for old, new in zip(longest, seen, strict=True)]
    return tuple(longest)


def kernel(*shape):
    return np.random.default_rng(2).random(shape) + 0.5


# Networks whose receptive field is smaller than the image, and exact.
FIELDS = {
    "convolutions": lambda x: F.conv2d(F.conv2d(x, kernel(3, 5, 1, 1), stride=2), kernel(2, 3, 1, 1)),
    "dilated": lambda x: F.conv2d(F.conv2d(x, kernel(3, 3, 1, 1)), kernel(3, 3, 1, 1), dilation=(3, 2)),
    "average": lambda x: F.conv2d(F.avg_pool2d(x, 2), kernel(3, 3, 1, 1), padding=1),
    "two paths": lambda x: F.add(
        F.conv2d(x, kernel(5, 5, 1, 1), padding=2), F.pad(F.crop(x, (3, 0, 0, 0)), (0, 3, 0, 0))
    ),
    "shrunk": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    "up": lambda x: F.conv_transpose2d(F.avg_pool2d(x, 4), kernel(4, 4, 1, 1), stride=2, padding=1),
    "up by 3": lambda x: F.conv_transpose2d(F.avg_pool2d(x, 3), kernel(3, 3, 1, 1), stride=3),
    "bilinear": lambda x: F.resize(F.avg_pool2d(x, 4), scale=2),
    "nearest": lambda x: F.resize(F.avg_pool2d(x, 4), scale=2, mode="nearest"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_receptive_fields_are_what_gradients_reach(name):
    function = FIELDS[name]
    network = Network(function)
    row = summarise(network, 16, 20, channels=1)[-1]
    assert row.receptive_field == seen_by_a_cell(function, (16, 20))


def test_strides():
    assert rows_of(lambda x: F.avg_pool2d(x, (4, 2)), (16, 20))[-1].stride == (4, 2)
    assert rows_of(lambda x: F.resize(F.avg_pool2d(x, 4), scale=2), (16, 20))[-1].stride == (
        2,
        2,
    )
    assert rows_of(lambda x: F.resize(F.global_avg_pool2d(x), (8, 5)), (16, 20))[-1].stride == (2, 4)
    corners = rows_of(lambda x: F.resize(F.max_pool2d(x, 2, ceil_mode=True), (17, 9), align_corners=True), (17, 9))
    assert corners[-1].stride == (1, 1)
    assert rows_of(lambda x: F.resize(x, (4, 4)), (5, 4))[-1].stride == (1.25, 1)


def test_costs_by_hand():
    class Small(nn.Module):
        in_channels = 3

        def __init__(self):
            self.conv = nn.Conv2d(3, 8, (3, 5), padding="same", rng=RNG)
            self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2, bias=False, rng=RNG)
            self.up.weight.requires_grad = False
            self.head = nn.Linear(6, 5, rng=RNG)

        def forward(self, x):
            x = F.relu(self.conv(self.conv(x) if x.shape[3] == 8 else x))
            return self.head(F.relu(self.up(x)))

    conv, relu, up, _, head = summarise(Small(), 10, 12)
    assert conv == (
        "conv",
        "conv2d 3x5",
        (10, 12, 8),
        3 * 5 * 3 * 8 + 8,
        0,
        120 * 15 * 3 * 8,
        3840,
        (3, 5),
        (1, 1),
    )
    assert relu == ("", "relu", (10, 12, 8), 0, 0, 0, 3840, (3, 5), (1, 1))
    assert (up.parameters, up.fixed, up.multiply_adds) == (0, 16 * 3 * 8, 120 * 16 * 3 * 8)
    assert (up.layer, up.operator, up.size) == ("up", "conv_transpose2d 4x4 /2, 2 groups", (22, 26, 6))
    assert (head.parameters, head.multiply_adds) == (6 * 5 + 5, 22 * 26 * 30)


def test_shared_parameters_count_once_and_nested_layers_have_their_names():
    conv = nn.Conv2d(2, 2, 1, rng=RNG)
    block = nn.Sequential(nn.Sequential(conv, nn.ReLU()), conv)
    block.in_channels = 2
    rows = summarise(block, 4, 5)
    assert [row.layer for row in rows] == ["0.0", "0.1", "0.0"]
    assert [row.parameters for row in rows] == [6, 0, 0]


@pytest.mark.parametrize("name", ["unet", "unet_padded", "fc_densenet56", "plain"])
def test_all_parameters_of_a_network_are_in_its_rows(name):
    network = sketch(models.create, name, 3, 11)
    rows = summarise(network, 200, 213)
    assert sum(row.parameters for row in rows) == network.num_parameters()
    assert network.num_parameters() == models.create(name, 3, 11).num_parameters()


# Billions of multiply-adds for 513 x 513: of the convolutions, and as the DeepLabv3+ paper reports them. Its
# framework pads the input of a dilated convolution to a multiple of the rate: up to a tenth more, at stride 8.
DEEP_STEM = {"stem": "64-64-128"}
PUBLISHED = [
    ("deeplab_v3_resnet101", DEEP_STEM | {"output_stride": 32}, 51.41, 52.43),
    ("deeplab_v3_resnet101", DEEP_STEM, 76.05, 81.02),
    ("deeplab_v3_resnet101", DEEP_STEM | {"output_stride": 8}, 252.25, 276.18),
    ("deeplab_v3plus_xception65", {}, 54.04, 54.17),
    ("deeplab_v3plus_xception65", {"output_stride": 8}, 176.85, 177.10),
    ("deeplab_v3plus_xception65", {"separable": False}, 86.68, 89.76),
    ("deeplab_v3plus_xception65", {"separable": False, "output_stride": 8}, 248.78, 262.59),
]


@pytest.mark.parametrize(("name", "settings", "convolutions", "published"), PUBLISHED)
def test_published_multiply_adds(name, settings, convolutions, published):
    rows = summarise(sketch(models.create, name, **settings), 513, 513)
    total = sum(row.multiply_adds for row in rows) / 1e9
    assert total == pytest.approx(convolutions, abs=0.006)
    assert 0.9 < total / published < 1


def test_sizes_of_unet():
    rows = {
        (row.layer, row.operator.split()[0]): row
        for row in summarise(sketch(models.create, "unet", 1, 2), 572, 572)
    }
    assert rows["contracting.4.conv2", "conv2d"].size == (28, 28, 1024)
    assert rows["contracting.4.conv2", "conv2d"].receptive_field == (140, 140)
    assert rows["contracting.4.conv2", "conv2d"].stride == (16, 16)
    assert rows["classifier", "conv2d"].size == (388, 388, 2)
    assert rows["classifier", "conv2d"].stride == (1, 1)


def test_nothing_changes():
    network = models.create("unet_padded", 2, 3, base=2, depth=1)
    network.expansive[0].norm1.train(False)  # one layer in another mode than the rest
    x = RNG.standard_normal((1, 8, 6, 2)).astype(np.float32)
    y, state, forward = network(x).data, network.state_dict(), F.conv2d
    summarise(network, 33, 20)
    assert F.conv2d is forward
    assert [module.training for module in network.modules()].count(False) == 1
    assert all(np.array_equal(value, state[name]) for name, value in network.state_dict().items())
    np.testing.assert_array_equal(network(x).data, y)

    with pytest.raises(ValueError, match="too small"):
        summarise(models.create("unet", base=1), 20, 20)
    assert F.conv2d is forward


def test_errors():
    with pytest.raises(ValueError, match="x has 5 channels"):
        summarise(nn.Conv2d(2, 3, 1, rng=RNG), 4, 4, channels=5)
    with pytest.raises(ValueError, match="ReLU has no in_channels; give the image's channels"):
        summarise(nn.ReLU(), 4, 4)
    with pytest.raises(ValueError, match="0 x 4 pixels and 1 channels is empty"):
        summarise(nn.ReLU(), 0, 4, channels=1)
    with pytest.raises(ValueError, match=r"concat: shapes .* do not fit along axis 3"):
        rows_of(lambda x: F.concat([x, F.max_pool2d(x, 2)]))
    with pytest.raises(ValueError, match="linear: x of shape"):
        rows_of(lambda x: F.linear(x, weight(3, 3)))


def test_a_network_that_computes_something_else_still_has_a_summary():
    """A function without a rule runs as it is; what it returns is a map of which nothing is known."""
    rows = rows_of(lambda x: F.relu(Tensor(np.abs(x.data))))
    assert rows[0].size == (9, 7, 2) and rows[0].receptive_field is None and rows[0].stride is None
