"""All backbones: exact counts, sizes of the maps, any image size, gradients, and conversion to convolutions."""

import itertools

import numpy as np
import pytest

from tinyseg import nn
from tinyseg.models import backbones
from tinyseg.models.summary import sketch
from tinyseg.tape import no_grad

NAMES = sorted(backbones.BACKBONES)

# The counts are those of the papers' and libraries' networks, computed with another library.
COUNTS = [
    ("alexnet", 1000, {}, 60_965_224),
    ("caffenet", 1000, {}, 60_965_224),
    ("caffenet", 1000, {"groups": 1}, 62_378_344),
    ("alexnet_torchvision", 1000, {}, 61_100_840),
    ("vgg16", 1000, {}, 138_357_544),
    ("vgg16", None, {}, 14_714_688),
    ("vgg16_bn", 1000, {}, 138_365_992),
    ("vgg16_largefov", 21, {}, 20_505_429),
    ("vgg16_largefov", 21, {"average_pool": False}, 20_505_429),
    ("vgg16_largefov", 21, {"fc6_kernel": 7, "fc6_rate": 4, "fc_channels": 4096}, 134_346_581),
    ("vgg16_largefov", 21, {"fc6_kernel": 4, "fc6_rate": 4, "fc_channels": 4096}, 65_140_565),
    ("googlenet", 1000, {}, 6_998_552),
    ("googlenet", 1000, {"auxiliary": True}, 13_378_280),
    ("googlenet", None, {}, 5_973_552),
    ("googlenet", 1000, {"variant": "batch_norm"}, 7_005_832),
    ("googlenet", None, {"variant": "batch_norm"}, 5_980_832),
    ("googlenet_torchvision", 1000, {}, 6_624_904),
    ("googlenet_torchvision", 1000, {"auxiliary": True}, 13_004_888),
    ("googlenet_torchvision", None, {}, 5_599_904),
    ("resnet18", 1000, {}, 11_689_512),
    ("resnet34", 1000, {}, 21_797_672),
    ("resnet50", 1000, {}, 25_557_032),
    ("resnet101", 1000, {}, 44_549_160),
    ("resnet18", None, {}, 11_176_512),
    ("resnet34", None, {}, 21_284_672),
    ("resnet50", None, {}, 23_508_032),
    ("resnet101", None, {}, 42_500_160),
    ("resnet50", 1000, {"style": "caffe", "output_stride": 8}, 25_557_032),
    ("resnet50", 1000, {"style": "slim", "output_stride": 16}, 25_557_032),
    ("resnet18", 1000, {"stem": "64-64-128"}, 11_837_992),
    ("resnet34", 1000, {"stem": "64-64-128"}, 21_946_152),
    ("resnet50", 1000, {"stem": "64-64-128"}, 25_680_808),
    ("resnet101", 1000, {"stem": "64-64-128"}, 44_672_936),
    ("resnet50", None, {"stem": "64-64-128"}, 23_631_808),
    ("resnet101", None, {"stem": "64-64-128"}, 42_623_936),
    ("resnet18", 1000, {"stem": "32-32-64"}, 11_708_744),
    ("resnet34", 1000, {"stem": "32-32-64"}, 21_816_904),
    ("resnet50", 1000, {"stem": "32-32-64"}, 25_576_264),
    ("resnet101", 1000, {"stem": "32-32-64"}, 44_568_392),
    ("densenet121", 1000, {}, 7_978_856),
    ("densenet121", None, {}, 6_953_856),
    ("xception41", 1000, {}, 26_969_560),
    ("xception65", 1000, {}, 39_916_312),
    ("xception71", 1000, {}, 42_338_736),
    ("xception41", None, {}, 24_920_560),
    ("xception65", None, {}, 37_867_312),
    ("xception71", None, {}, 40_289_736),
    ("wide_resnet38", None, {}, 105_062_720),
    ("sppnet", 1000, {}, 77_037_672),
]
# Numbers in running means and variances.
MOMENTS = {
    "vgg16": 0,
    "vgg16_bn": 8_448,
    "resnet18": 9_600,
    "resnet34": 17_024,
    "resnet50": 53_120,
    "resnet101": 105_344,
    "xception41": 115_312,
    "xception65": 185_200,
    "xception71": 198_976,
}
# Channels and strides of the maps at the paper's width, for an image of its size.
MAPS = {
    "alexnet": (227, {"pool1": (27, 96), "pool2": (13, 256), "pool5": (6, 256)}),
    "caffenet": (227, {"pool1": (27, 96), "pool2": (13, 256), "pool5": (6, 256)}),
    "alexnet_torchvision": (224, {"pool1": (27, 64), "pool2": (13, 192), "pool5": (6, 256)}),
    "vgg16": (
        224,
        {"pool1": (112, 64), "pool2": (56, 128), "pool3": (28, 256), "pool4": (14, 512), "pool5": (7, 512)},
    ),
    "vgg16_largefov": (
        321,
        {
            "pool1": (161, 64),
            "pool2": (81, 128),
            "pool3": (41, 256),
            "pool4": (41, 512),
            "pool5": (41, 512),
            "pool5a": (41, 512),
        },
    ),
    "googlenet": (
        224,
        {
            "conv1": (112, 64),
            "conv3": (56, 192),
            "inception3b": (28, 480),
            "inception4e": (14, 832),
            "inception5b": (7, 1024),
        },
    ),
    "resnet34": (
        224,
        {
            "conv1": (112, 64),
            "low_level": (56, 64),
            "layer1": (56, 64),
            "layer2": (28, 128),
            "layer3": (14, 256),
            "layer4": (7, 512),
        },
    ),
    "resnet50": (
        224,
        {
            "conv1": (112, 64),
            "low_level": (56, 256),
            "layer1": (56, 256),
            "layer2": (28, 512),
            "layer3": (14, 1024),
            "layer4": (7, 2048),
        },
    ),
    "densenet121": (
        224,
        {
            "conv0": (112, 64),
            "denseblock1": (56, 256),
            "denseblock2": (28, 512),
            "denseblock3": (14, 1024),
            "denseblock4": (7, 1024),
        },
    ),
    "xception65": (
        513,
        {
            "conv1": (257, 64),
            "entry.0": (129, 128),
            "low_level": (129, 256),
            "entry.1": (65, 256),
            "entry.2": (33, 728),
            "middle": (33, 728),
            "exit": (17, 2048),
        },
    ),
    "xception71": (
        513,
        {
            "conv1": (257, 64),
            "entry.0": (129, 128),
            "entry.1": (129, 256),
            "low_level": (129, 256),
            "entry.2": (65, 256),
            "entry.3": (65, 728),
            "entry.4": (33, 728),
            "middle": (33, 728),
            "exit": (17, 2048),
        },
    ),
    "wide_resnet38": (
        64,
        {
            "mod1": (64, 64),
            "mod2": (32, 128),
            "mod3": (16, 256),
            "mod4": (8, 512),
            "mod5": (8, 1024),
            "mod6": (8, 2048),
            "mod7": (8, 4096),
            "last": (8, 4096),
        },
    ),
}


def image(*size, channels=3, batch=1):
    return np.random.default_rng(4).standard_normal((batch, *size, channels)).astype(np.float32)


def small(name, **settings):
    return backbones.create(name, **({"classes": 5, "width": 0.04} | settings))


@pytest.mark.parametrize(("name", "classes", "settings", "parameters"), COUNTS)
def test_parameter_counts(name, classes, settings, parameters):
    net = sketch(backbones.create, name, classes=classes, **settings)
    assert net.num_parameters() == parameters


@pytest.mark.parametrize(("name", "numbers"), MOMENTS.items())
def test_running_moments(name, numbers):
    buffers = sketch(backbones.create, name, classes=None).named_buffers()
    assert sum(buffer.data.size for _, buffer in buffers) == numbers


def test_a_width_of_one_is_the_default_and_others_scale():
    counts = [sketch(backbones.create, "resnet50", width=width).num_parameters() for width in (0.25, 0.5, 1, 2)]
    assert counts[2] == 25_557_032
    assert all(3 < larger / smaller < 4 for smaller, larger in itertools.pairwise(counts))


@pytest.mark.parametrize("name", MAPS)
def test_channels_of_the_table(name):
    net = sketch(backbones.create, name)
    assert net.stage_channels == {stage: channels for stage, (_, channels) in MAPS[name][1].items()}


@pytest.mark.parametrize("name", MAPS)
def test_sizes_of_the_table(name):
    side, expected = MAPS[name]
    net = small(name, width=0.02).eval()
    with no_grad():
        maps = net.stages(image(side, side))
    assert {stage: x.shape[1:3] for stage, x in maps.items()} == {
        stage: (length, length) for stage, (length, _) in expected.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_as_announced(name):
    net = small(name)
    height, width = 97, 129
    with no_grad():
        maps = net.stages(image(height, width, batch=2))
    assert list(maps) == list(net.stage_channels) == list(net.stage_strides)
    assert list(maps)[-1] == net.last_stage
    for stage, x in maps.items():
        assert x.shape[3] == net.stage_channels[stage]
        for length, given in zip(x.shape[1:3], (height, width), strict=True):
            # AlexNet and SPPNet have no padding in their first convolution, and lose up to three cells.
            assert given / net.stage_strides[stage] - 3 < length <= given / net.stage_strides[stage] + 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_any_image_from_the_smallest(name, training):
    net = small(name).train(training)
    smallest = net.smallest_side
    for size in ((smallest, smallest + 6), (smallest + 11, smallest)):
        with no_grad():
            logits = net(image(*size, batch=2))
        assert logits.shape[0] == 2 and logits.shape[-1] == 5
        assert np.isfinite(logits.data).all()


@pytest.mark.parametrize("name", [name for name in NAMES if small(name).smallest_side > 1])
def test_too_small_an_image(name):
    net = small(name)
    side = net.smallest_side
    with pytest.raises(ValueError, match=rf"{side - 1} x {side} pixels is too small.*at least {side} x {side}"):
        net(image(side - 1, side))
    # The bound is sharp: without the check an operator would have refused.
    net.smallest_side = 1
    with pytest.raises(ValueError):
        net.stages(image(side - 1, side))


@pytest.mark.parametrize("name", NAMES)
def test_other_numbers_of_channels(name):
    net = small(name, in_channels=1, classes=2)
    size = max(33, net.smallest_side)
    with no_grad():
        assert net(image(size, size + 1, channels=1)).shape[-1] == 2
    with pytest.raises(ValueError, match=r"shape \(N, H, W, 1\), got \(1, 64, 64, 3\).*in_channels"):
        net(image(64, 64))
    with pytest.raises(ValueError, match=r"shape \(N, H, W, 1\), got \(64, 64, 1\)"):
        net.stages(image(64, 64, channels=1)[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("resnet101", "xception65", "xception71")])
def test_gradient_through_the_whole_network(name, check_network_gradient):
    settings = {"densenet121": {"units": (2, 2, 2, 2), "width": 0.1}}.get(name, {})
    net = small(name, **settings)
    smallest = max(21, net.smallest_side)
    check_network_gradient(net, (smallest + 2, smallest + 9))


def test_same_weights_from_the_same_generator():
    first, second = small("resnet18").state_dict(), small("resnet18").state_dict()
    other = small("resnet18", rng=np.random.default_rng(7)).state_dict()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["conv1.weight"], other["conv1.weight"])


# ------------------------------------------------------------------------------------------- without a classifier


@pytest.mark.parametrize("name", NAMES)
def test_a_trunk_alone(name):
    trunk = small(name, classes=None)
    with pytest.raises(ValueError, match="made with classes=None"):
        trunk(image(64, 64))
    names = {name for name, _ in small(name).trunk().named_parameters()}
    extra = {"norm_last.weight", "norm_last.bias"} if name == "wide_resnet38" else set()
    assert names == {name for name, _ in trunk.named_parameters()} | extra


def test_trunk_is_a_copy():
    net = small("resnet18")
    trunk = net.trunk()
    trunk.conv1.weight.data = np.zeros_like(trunk.conv1.weight.data)
    assert net.conv1.weight.data.any() and net.classes == 5 and net.fc is not None


# --------------------------------------------------------------------------------------------- as convolutions

# The image whose last map is just what the fully connected layers read.
FITTING = {"alexnet": 227, "caffenet": 227, "alexnet_torchvision": 224, "vgg16": 224, "vgg16_bn": 224}


def test_a_pyramid_is_no_convolution():
    with pytest.raises(TypeError, match=r"fully connected layer of SPPNet reads 500 numbers, and not the 10 of"):
        backbones.as_convolutions(small("sppnet"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sppnet"])
def test_as_convolutions_says_what_the_classifier_says(name):
    net = small(name, width=0.06)
    side = FITTING.get(name, 75)
    x = image(side, side)
    with no_grad():
        net(x)  # moves the running statistics, so that an untrained network in evaluation stays in range
        net.eval()
        dense = backbones.as_convolutions(net)
        expected, scores = net(x).data, dense(x).data
    assert not dense.training
    assert dense.num_parameters() == net.num_parameters()
    if name == "vgg16_largefov":  # it is dense already
        np.testing.assert_array_equal(scores, expected)
    else:
        assert scores.ndim == 4
        if name in FITTING:
            assert scores.shape == (1, 1, 1, 5)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(scores.mean(axis=(1, 2)) / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize(("name", "side"), [("caffenet", 355), ("vgg16", 404)])
def test_as_convolutions_slides_the_classifier(name, side):
    """Without padding each score is the classifier's answer to a crop of the size of its receptive field."""
    net, stride = small(name).eval(), 32
    for layer in net.features:
        if isinstance(layer, nn.Conv2d):
            layer.options["padding"] = 0
    dense = backbones.as_convolutions(net)
    with no_grad():
        x = image(side + 2 * stride, side + stride)
        scores = dense(x).data
        assert scores.shape == (1, 3, 2, 5)
        for i, j in ((0, 0), (2, 1)):
            crop = x[:, stride * i : stride * i + side, stride * j : stride * j + side]
            np.testing.assert_allclose(net(crop).data[0], scores[0, i, j], rtol=1e-4, atol=1e-5)


def test_as_convolutions_keeps_the_mode_and_copies():
    net = small("vgg16")
    dense = backbones.as_convolutions(net, padding=3)
    assert dense.training and dense.scores[2].training
    dense.scores[0].weight.data[...] = 0
    dense.trunk.features[0].weight.data[...] = 0
    assert net.classifier[0].weight.data.any() and net.features[0].weight.data.any()
    with no_grad():
        assert dense.eval()(image(64, 96)).shape == (1, 2, 3, 5)


def test_as_convolutions_errors():
    with pytest.raises(TypeError, match="no fully connected layers to convert"):
        backbones.as_convolutions(small("resnet18", classes=None))
    with pytest.raises(TypeError, match="classifier made with a number of classes"):
        backbones.as_convolutions(nn.Conv2d(3, 4, 1, rng=np.random.default_rng(0)))
    dense = backbones.as_convolutions(small("vgg16"))
    with pytest.raises(ValueError, match=r"image of 64 x 96 pixels the last map has 2 x 3, less than the 7 x 7"):
        dense(image(64, 96))


def test_gradient_through_a_converted_classifier(check_network_gradient):
    dense = backbones.as_convolutions(small("alexnet_torchvision"), padding=2)
    dense.in_channels = 3
    check_network_gradient(dense, (95, 127), batch=1)


# ------------------------------------------------------------------------------------------------------- errors


def test_create_errors():
    with pytest.raises(ValueError, match="no backbone 'resnet51'; did you mean 'resnet50'"):
        backbones.create("resnet51")
    with pytest.raises(ValueError, match=r"vgg16 has no setting 'style'; it has batch_norm, ceil_mode"):
        backbones.create("vgg16", style="slim")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet50", {"in_channels": 0}, "ResNet: in_channels must be at least 1, got 0"),
        ("vgg16", {"classes": 0}, "VGG: classes must be at least 1, or None for a trunk alone, got 0"),
        ("xception41", {"width": 0}, "Xception: width must be positive, got 0"),
        ("resnet50", {"depth": 20}, "ResNet: depth must be one of 18, 34, 50, 101; got 20"),
        ("resnet50", {"style": "tf"}, "style must be one of 'torchvision', 'caffe', 'slim'; got 'tf'"),
        ("resnet50", {"stem": "deep"}, "stem must be one of '7x7', '64-64-128', '32-32-64'; got 'deep'"),
        ("resnet50", {"output_stride": 4}, "output_stride must be one of 32, 16, 8; got 4"),
        ("resnet50", {"first_rate": "old"}, "first_rate must be one of 'previous', 'new'"),
        ("resnet50", {"multi_grid": (1, 2)}, r"multi_grid needs 3 positive factors, .*ResNet-50; got \(1, 2\)"),
        ("xception65", {"output_stride": 4}, "Xception: output_stride must be one of 32, 16, 8; got 4"),
        ("xception65", {"multi_grid": (1, 0, 1)}, "multi_grid needs 3 positive factors"),
        ("wide_resnet38", {"output_stride": 64}, "output_stride must be one of 32, 16, 8; got 64"),
        ("alexnet", {"variant": "caffe"}, "variant must be one of 'caffenet', 'alexnet', 'torchvision'"),
        ("googlenet", {"variant": "bn"}, "variant must be one of 'caffe', 'torchvision', 'batch_norm'"),
        ("densenet121", {"units": (6, 12)}, r"units must be 4 positive numbers.*\(6, 12\)"),
    ],
)
def test_errors_of_settings(name, settings, message):
    with pytest.raises(ValueError, match=message):
        backbones.create(name, **({"width": 0.02} | settings))
