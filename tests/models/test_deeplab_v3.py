"""DeepLab v3 and v3+: rates, strides that are switched after training, image features, decoder."""

import numpy as np
import pytest

from tinyseg import models, ops
from tinyseg.models.aspp import ASPP
from tinyseg.models.deeplab_v3 import DeepLabV3
from tinyseg.models.deeplab_v3plus import DeepLabV3Plus
from tinyseg.models.summary import sketch, summarise
from tinyseg.nn import BatchNorm2d


def small(**settings):
    settings = {"backbone": "resnet18", "width": 1 / 16} | settings
    return randomised(DeepLabV3(2, 3, rng=np.random.default_rng(1), **settings))


def small_plus(**settings):
    settings = {"backbone": "resnet18", "width": 1 / 16, "separable": False} | settings
    return randomised(DeepLabV3Plus(2, 3, rng=np.random.default_rng(1), **settings))


def randomised(net):
    """In evaluation, with statistics as they might be after training, and in float64."""
    rng = np.random.default_rng(2)
    for module in net.modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean.data = 0.1 * rng.standard_normal(module.running_mean.data.shape)
            module.running_var.data = 0.5 + rng.random(module.running_var.data.shape)
    return net.astype(np.float64).eval()


def random_image(*size):
    return np.random.default_rng(0).standard_normal((2, *size, 2))


def rates(layer):
    return [unit.conv2.options["dilation"] for unit in layer]


@pytest.mark.parametrize(
    ("output_stride", "layer3", "layer4", "aspp"),
    [(32, 1, [1, 2, 4], [3, 6, 9]), (16, 1, [2, 4, 8], [6, 12, 18]), (8, 2, [4, 8, 16], [12, 24, 36])],
)
def test_rates_of_the_table(output_stride, layer3, layer4, aspp):
    for name in ("deeplab_v3_resnet101", "deeplab_v3plus_resnet101"):
        for style in ("slim", "caffe", "torchvision"):
            net = sketch(models.create, name, style=style)
            net.set_output_stride(output_stride)
            assert set(rates(net.trunk.layer3)) == {layer3}
            assert rates(net.trunk.layer4) == layer4
            assert [branch[0].options["dilation"] for branch in net.aspp.convs[1:4]] == aspp


@pytest.mark.parametrize("style", ["slim", "caffe", "torchvision"])
def test_rates_of_the_cascade(style):
    net = sketch(models.create, "deeplab_v3_resnet50", head="block7", style=style, multi_grid=(1, 2, 1))
    layers = [net.trunk.layer4, *net.blocks]
    assert [rates(layer) for layer in layers] == [[2, 4, 2], [4, 8, 4], [8, 16, 8], [16, 32, 16]]
    net.set_output_stride(256)
    assert [rates(layer) for layer in layers] == [[1, 2, 1]] * 4


def test_sizes_of_the_figure():
    rows = summarise(sketch(models.create, "deeplab_v3_resnet101"), 513, 513)
    # The last operator of each part; that of layer3 is the relu of its last unit.
    ends = {row.layer.split(".")[1]: row.size for row in rows if row.layer.startswith("trunk.")}
    assert [ends[name][:2] for name in ("bn1", "maxpool", "layer1", "layer2", "layer3", "layer4")] == [
        (side, side) for side in (257, 129, 65, 33, 33, 33)
    ]
    assert ends["layer4"] == (33, 33, 2048)
    assert rows[-1].size == (513, 513, 21)


def test_sizes_of_the_figure_of_the_decoder():
    rows = summarise(sketch(models.create, "deeplab_v3plus_xception65"), 513, 513)
    assert [row.size for row in rows if row.layer.startswith("low_level")][-1] == (129, 129, 48)
    assert [row.size for row in rows if row.operator.startswith("concat")] == [(33, 33, 1280), (129, 129, 304)]
    assert [row.size for row in rows if row.layer.startswith("decoder")][-1] == (129, 129, 256)
    assert [row.size for row in rows if row.layer.startswith("classifier")] == [(129, 129, 21)]


def test_sizes_of_the_cascade():
    for output_stride, side in [(8, 65), (16, 33), (32, 17), (64, 9), (128, 5), (256, 3)]:
        net = sketch(models.create, "deeplab_v3_resnet50", head="block7", output_stride=output_stride)
        rows = summarise(net, 513, 513)
        assert [row.size[0] for row in rows if row.layer == "classifier"] == [side]


@pytest.mark.parametrize(
    "settings",
    [
        {"image_pooling": False},  # the mean of a finer map is another mean
        {"image_pooling": False, "backbone": "xception41", "width": 1 / 64},
        {"head": "block4"},
        {"head": "block6"},
        {"head": "block7", "backbone": "resnet50"},
        {"head": "block6", "style": "caffe"},
        {"head": "block7", "style": "torchvision", "backbone": "resnet50"},
        {"image_pooling": False, "style": "torchvision", "backbone": "resnet50"},
    ],
)
def test_a_finer_output_stride_answers_the_same_at_the_old_places(settings):
    """Exactly: each dilated kernel meets the pixels, and the padding, that the kernel behind a stride meets."""
    net = small(**settings)
    image = random_image(65, 129)
    coarsest = {"block5": 64, "block6": 128, "block7": 256}.get(settings.get("head", ""), 32)
    same_rates = settings.get("style") == "torchvision"
    net.set_output_stride(8)
    finest = net.scores(image).data
    stride = 16
    while stride <= coarsest:
        net.set_output_stride(stride)
        step = stride // 8
        expected = finest[:, ::step, ::step]
        if same_rates:
            # All units take the new rate, so that only the sizes agree with those of the strided network.
            assert net.scores(image).shape == expected.shape
        else:
            np.testing.assert_allclose(net.scores(image).data, expected, rtol=1e-9, atol=1e-12)
        stride *= 2
    net.set_output_stride(8)
    np.testing.assert_array_equal(net.scores(image).data, finest)


def test_the_decoder_sees_an_encoder_of_any_stride():
    net = small_plus()
    image = random_image(65, 97)
    answers = []
    for output_stride in (32, 16, 8):
        net.set_output_stride(output_stride)
        answers.append(net(image).data)
        assert answers[-1].shape == (2, 65, 97, 3)
    assert not np.allclose(answers[0], answers[1])
    assert not np.allclose(answers[1], answers[2])


def test_what_the_decoder_is_made_of():
    """The released network reads a correction before it is added; with other styles it is all of layer1."""
    image = random_image(33, 49)
    for style in ("slim", "torchvision"):
        net = small_plus(style=style)
        maps = net.trunk.stages(image)
        stem = net.trunk.maxpool(net.trunk.bn1(net.trunk.conv1(image)))
        first = net.trunk.layer1[0](stem)
        expected = net.trunk.layer1[0].correction(stem) if style == "slim" else net.trunk.layer1[1](first)
        np.testing.assert_allclose(maps["low_level"].data, expected.data, rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------ ASPP


def test_counts_of_the_head():
    for separable, parameters in [(False, 15_535_104), (True, 3_019_776)]:
        aspp = sketch(ASPP, 2048, separable=separable, rng=np.random.default_rng(0))
        assert aspp.num_parameters() == parameters


def test_branches_of_the_head():
    """Against a sum over the taps, written out; the last branch is the mean."""
    rng = np.random.default_rng(0)
    aspp = randomised(ASPP(3, 2, rates=(1, 2, 5), rng=rng))
    x = rng.standard_normal((2, 7, 6, 3))
    for branch, rate in zip(aspp.convs[1:4], (1, 2, 5), strict=True):
        padded = np.pad(x, ((0, 0), (rate, rate), (rate, rate), (0, 0)))
        y = np.zeros((2, 7, 6, 2))
        for r in range(3):
            for s in range(3):
                y += padded[:, r * rate : r * rate + 7, s * rate : s * rate + 6] @ branch[0].weight.data[r, s]
        np.testing.assert_allclose(branch(x).data, normalised(y, branch[1]), rtol=1e-12, atol=1e-14)
    pooling = aspp.convs[4]
    mean = np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)
    expected = normalised(mean @ pooling[1].weight.data[0, 0], pooling[2])
    np.testing.assert_allclose(pooling(x).data, expected, rtol=1e-12, atol=1e-14)


def normalised(y, norm):
    y = (y - norm.running_mean.data) / np.sqrt(norm.running_var.data + 1e-5)
    return np.maximum(norm.weight.data * y + norm.bias.data, 0)


def test_a_rate_as_large_as_the_map_leaves_a_1x1_convolution():
    rng = np.random.default_rng(0)
    aspp = randomised(ASPP(3, 2, rates=(7,), rng=rng))
    x = rng.standard_normal((1, 7, 5, 3))
    conv = aspp.convs[1][0]
    centre, _ = ops.conv2d(x, conv.weight.data[1:2, 1:2])
    np.testing.assert_allclose(conv(x).data, centre, rtol=1e-12)


def test_image_features_of_a_single_image_in_training():
    """Normalised with the running statistics, which stay; with two images, with those of the batch."""
    aspp = randomised(ASPP(3, 2, rng=np.random.default_rng(0))).train()
    x = np.random.default_rng(1).standard_normal((2, 5, 4, 3))
    pooling = aspp.convs[4]
    before = pooling.state_dict()
    single = pooling(x[:1]).data
    assert all(np.array_equal(before[name], value) for name, value in pooling.state_dict().items())
    np.testing.assert_array_equal(single, pooling.eval()(x).data[:1])
    pooling.train()(x)
    assert not np.array_equal(before["2.running_mean"], pooling.state_dict()["2.running_mean"])


# ---------------------------------------------------------------------------------------------------------- errors


def test_errors():
    with pytest.raises(ValueError, match=r"backbone must be one of 'resnet101', .*'xception71'; got 'vgg16'"):
        small(backbone="vgg16")
    with pytest.raises(ValueError, match=r"head must be one of 'aspp', 'block4'.*got 'fcn'"):
        small(head="fcn")
    with pytest.raises(ValueError, match=r"head='block7' repeats the last stage of a ResNet.*use head=.aspp."):
        small(head="block7", backbone="xception41", width=1 / 64)
    with pytest.raises(ValueError, match="multi_grid needs 2 positive factors"):
        small(multi_grid=(1, 2, 4))
    with pytest.raises(ValueError, match="output_stride must be one of 64, 32, 16, 8; got 128"):
        small(head="block5", output_stride=128)
    with pytest.raises(ValueError, match="3 3x3 convolutions, for as many positive rates; got"):
        small().aspp.set_rates((1, 2))
    with pytest.raises(
        ValueError, match="deeplab_v3_resnet50 has no setting 'os'; it has backbone, output_stride, head"
    ):
        models.create("deeplab_v3_resnet50", os=8)
