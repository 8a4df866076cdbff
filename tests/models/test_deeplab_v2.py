"""DeepLab v2: sums of branches, and the largest score of three sizes of the image."""

import numpy as np
import pytest

from tinyseg import models, ops
from tinyseg.gradcheck import check_vjp
from tinyseg.models.deeplab_v2 import DeepLabV2, maximum
from tinyseg.models.summary import sketch, summarise
from tinyseg.tape import Tensor


def small(**settings):
    settings = {"backbone": "resnet18", "width": 1 / 16} | settings
    return DeepLabV2(2, 3, rng=np.random.default_rng(1), **settings)


def random_image(*size):
    return np.random.default_rng(0).standard_normal((2, *size, 2)).astype(np.float32)


@pytest.mark.parametrize("name", ["deeplab_v2_vgg16", "deeplab_v2_resnet101"])
def test_sizes_of_the_figure(name):
    rows = summarise(sketch(models.create, name), 321, 321)
    assert [row.size for row in rows if row.operator.startswith("add") and row.size[2] == 21] == [(41, 41, 21)] * 3
    assert rows[-1].size == (321, 321, 21)


def test_rates():
    assert [conv.options["dilation"] for conv in small().branches] == [6, 12, 18, 24]
    assert [conv.options["dilation"] for conv in small(aspp="S").branches] == [2, 4, 8, 12]
    vgg = small(backbone="vgg16", width=1 / 64, aspp="S")
    assert [branch.fc6.options["dilation"] for branch in vgg.branches] == [2, 4, 8, 12]


def test_dilation_of_the_trunk():
    net = sketch(models.create, "deeplab_v2_resnet101")
    assert {unit.conv2.options["dilation"] for unit in net.trunk.layer3} == {2}
    assert {unit.conv2.options["dilation"] for unit in net.trunk.layer4} == {4}
    assert net.trunk.layer2[0].conv1.options["stride"] == 2
    assert not sketch(models.create, "deeplab_v2_vgg16").trunk.average_pool


def test_branches_are_summed():
    """As one convolution whose kernel has the taps of all four branches."""
    net = small(aspp="S").eval()
    image = random_image(41, 50)
    x = net.trunk.stages(image)["layer4"].data
    kernel = np.zeros((25, 25, x.shape[3], 3), np.float32)
    for conv in net.branches:
        rate = conv.options["dilation"]
        kernel[12 - rate : 13 + rate : rate, 12 - rate : 13 + rate : rate] += conv.weight.data
    expected, _ = ops.conv2d(x, kernel, padding=12)
    np.testing.assert_allclose(net.scores(image).data, expected, rtol=1e-4, atol=1e-5)


def test_scales_of_a_crop_of_the_paper():
    fused, scales = small(multi_scale=True).scores_of_scales(np.zeros((1, 321, 321, 2), np.float32))
    assert [scores.shape[1] for scores in scales] == [41, 31, 21]  # from images of 321, 241 and 161 pixels
    assert fused.shape == (1, 41, 41, 3)


def test_the_largest_of_three_scales_counts(torch):
    net = small(multi_scale=True).eval()
    image = random_image(65, 49)
    expected = []
    for size in ((65, 49), (49, 37), (33, 25)):
        scores = net.scores_of_one_scale(resized(torch, image, size)).data
        expected.append(resized(torch, scores, (9, 7)))
    np.testing.assert_allclose(net.scores(image).data, np.max(expected, axis=0), rtol=1e-4, atol=1e-6)


def resized(torch, x, size):
    x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    y = torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=True)
    return np.ascontiguousarray(y.numpy().transpose(0, 2, 3, 1))


def test_maximum():
    maps = [np.random.default_rng(seed).standard_normal((2, 3, 4, 5)) for seed in range(3)]
    np.testing.assert_array_equal(maximum([Tensor(map) for map in maps]).data, np.maximum.reduce(maps))

    def forward(*maps):
        tensors = [Tensor(map, requires_grad=True) for map in maps]
        y = maximum(tensors)
        return y.data, (tensors, y)

    def backward(dy, cache):
        tensors, y = forward(*maps)[1]
        y.backward(dy)
        return tuple(tensor.grad for tensor in tensors)

    check_vjp(forward, backward, tuple(maps))


def test_errors():
    with pytest.raises(ValueError, match="DeepLabV2: aspp must be one of 'L', 'S', 'LargeFOV'; got 'M'"):
        small(aspp="M")
    with pytest.raises(ValueError, match="DeepLabV2: backbone must be one of 'vgg16', 'resnet18'"):
        small(backbone="vgg19")
