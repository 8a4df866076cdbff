"""FastFCN: counts and sizes of the facts, the two identities behind it, any size, gradients, losses, errors."""

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg import models, nn, ops
from tinyseg.models.fastfcn import JPU, JPUX, FastFCN
from tinyseg.models.network import CrossEntropy, total
from tinyseg.models.summary import sketch

# For 59 classes and with the auxiliary head: dilated, and with joint upsampling.
PARAMETERS = {
    ("fcn", "resnet50"): (35_475_254, 55_210_806),
    ("psp", "resnet50"): (49_110_838, 68_846_390),
    ("deeplab", "resnet50"): (42_147_382, 61_882_934),
    ("encnet", "resnet50"): (36_047_825, 47_394_769),
    ("fcn", "resnet101"): (54_467_382, 74_202_934),
    ("psp", "resnet101"): (68_102_966, 87_838_518),
    ("deeplab", "resnet101"): (61_139_510, 80_875_062),
    ("encnet", "resnet101"): (55_039_953, 66_386_897),
}
OTHER_CLASSES = {  # ResNet-50 with joint upsampling, 11, 19 and 21 classes
    "fcn": (55_173_846, 55_180_006, 55_181_546),
    "psp": (68_809_430, 68_815_590, 68_817_130),
    "deeplab": (61_858_262, 61_862_374, 61_863_402),
    "encnet": (47_333_185, 47_343_449, 47_346_015),
}
HEADS = ("fcn", "psp", "deeplab", "encnet")


def small(head="encnet", **settings):
    settings = {"in_channels": 2, "classes": 3, "backbone": "resnet18", "width": 1 / 16, "codewords": 3} | settings
    return FastFCN(head=head, rng=np.random.default_rng(1), **settings)


class AllOutputs(nn.Module):
    """All that a network says, in one map: logits, auxiliary logits, presence logits at every pixel."""

    def __init__(self, network):
        self.network, self.in_channels = network, network.in_channels

    def forward(self, x):
        logits, auxiliary, presence = self.network.outputs(x)
        maps = [logits, auxiliary]
        if presence is not None:
            maps.append(F.mul(logits, F.reshape(presence, (x.shape[0], 1, 1, -1))))
        return F.concat(maps)


@pytest.mark.parametrize(("head", "backbone"), PARAMETERS)
def test_parameter_counts(head, backbone):
    for joint, expected in zip((None, "jpu"), PARAMETERS[head, backbone], strict=True):
        net = sketch(models.create, f"fastfcn_{head}_{backbone}", 3, 59, joint=joint)
        assert net.num_parameters() == expected


@pytest.mark.parametrize("head", HEADS)
def test_parameter_counts_for_other_classes(head):
    for classes, expected in zip((11, 19, 21), OTHER_CLASSES[head], strict=True):
        assert sketch(models.create, f"fastfcn_{head}_resnet50", 3, classes).num_parameters() == expected


def test_parameter_counts_of_parts():
    def build(joint, width):
        return sketch(joint, (512, 1024, 2048), width, rng=np.random.default_rng(0)).num_parameters()

    assert [build(JPU, width) for width in (64, 128, 256, 512)] == [2_122_880, 4_344_064, 9_081_344, 19_735_552]
    assert build(JPUX, 512) == 19_719_168
    net = sketch(models.create, "fastfcn_encnet_resnet101", 3, 59, lateral=True)
    assert net.num_parameters() == 74_254_289
    assert net.trunk.num_parameters() == 42_623_936
    classic = sketch(models.create, "fastfcn_fcn_resnet50", 3, 59, stem="7x7")
    assert classic.num_parameters() == 55_210_806 - 123_776


@pytest.mark.parametrize("joint", [JPU, JPUX])
def test_sizes_of_the_figure(joint):
    rng = np.random.default_rng(0)
    maps = [
        rng.standard_normal((1, side, side, channels), np.float32)
        for side, channels in ((60, 2), (30, 4), (15, 8))
    ]
    assert joint((2, 4, 8), 4, rng=rng)(*maps).shape == (1, 60, 60, 16)
    net = small(joint="jpu" if joint is JPU else "jpu_x").eval()
    stages = net.trunk.stages(np.zeros((1, 480, 480, 2), np.float32))
    assert [stages[f"layer{stage}"].shape[1] for stage in (1, 2, 3, 4)] == [120, 60, 30, 15]


# ----------------------------------------------------------------------------------- why joint upsampling can work


@pytest.mark.parametrize("size", [(9, 12), (8, 7), (10, 10)])
@pytest.mark.parametrize("rate", [2, 3, 4])
def test_a_dilated_convolution_is_split_convolve_interleave(backend, rng, size, rate):
    x, w = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 4))
    dilated, _ = ops.conv2d(x, w, padding=rate, dilation=rate)
    interleaved = np.empty_like(dilated)
    for top, left in np.ndindex(rate, rate):
        phase = np.ascontiguousarray(x[:, top::rate, left::rate])
        interleaved[:, top::rate, left::rate] = ops.conv2d(phase, w, padding=1)[0]
    if backend == "numpy":
        np.testing.assert_array_equal(dilated, interleaved)
    np.testing.assert_allclose(dilated, interleaved, atol=1e-13)


@pytest.mark.parametrize("size", [(9, 12), (8, 7), (11, 11)])
def test_a_strided_stage_is_the_dilated_stage_subsampled(backend, rng, size):
    """Three convolutions with ReLU; the stride of the first becomes a dilation of the others."""
    x = rng.standard_normal((2, *size, 3))
    weights = (
        rng.standard_normal((3, 3, 3, 4)),
        rng.standard_normal((3, 3, 4, 4)),
        rng.standard_normal((3, 3, 4, 2)),
    )
    strided = dilated = x
    for index, w in enumerate(weights):
        strided = ops.relu(ops.conv2d(strided, w, padding=1, stride=2 if index == 0 else 1)[0])[0]
        rate = 1 if index == 0 else 2
        dilated = ops.relu(ops.conv2d(dilated, w, padding=rate, dilation=rate)[0])[0]
    if backend == "numpy":
        np.testing.assert_array_equal(strided, dilated[:, ::2, ::2])
    np.testing.assert_allclose(strided, dilated[:, ::2, ::2], atol=1e-12)


def test_the_trunk_with_strides_is_the_dilated_trunk_subsampled(rng):
    """In evaluation: in training each of them would be normalised by the statistics of its own pixels."""
    net = small(joint=None).eval().astype(np.float64)
    x = rng.standard_normal((1, 67, 45, 2))
    fine = net.trunk.stages(x)
    net.trunk.set_dilation(32)
    coarse = net.trunk.stages(x)
    np.testing.assert_allclose(coarse["layer3"].data, fine["layer3"].data[:, ::2, ::2], atol=1e-12)
    np.testing.assert_allclose(coarse["layer4"].data, fine["layer4"].data[:, ::4, ::4], atol=1e-12)


# --------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(1, 1), (7, 4), (33, 50)])
def test_any_size_and_a_batch_of_one(head, size):
    net = small(head)
    for training in (True, False):
        x = np.random.default_rng(0).random((1, *size, 2), np.float32)
        outputs = net.train(training).outputs(x)
        assert outputs.logits.shape == outputs.auxiliary.shape == (1, *size, 3)
        assert (outputs.presence is None) == (head != "encnet")
        assert np.isfinite(outputs.logits.data).all()
    np.testing.assert_array_equal(net(x).data, outputs.logits.data)


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("fcn", {}),
        ("fcn", {"joint": "jpu_x"}),
        ("psp", {}),
        ("deeplab", {"joint": None}),
        ("encnet", {}),
        ("encnet", {"lateral": True, "stem": "7x7"}),
    ],
)
def test_gradient_through_the_whole_network(check_network_gradient, head, settings):
    check_network_gradient(AllOutputs(small(head, **settings)), (35, 50))


def test_losses_are_weighted(rng):
    net = small("encnet")
    outputs = net.outputs(rng.random((2, 16, 17, 2), np.float32))
    labels = rng.integers(0, 2, (2, 16, 17))
    labels[0] = 0
    labels[:, 3:5] = 255
    main = ops.cross_entropy(outputs.logits.data, labels, ignore_label=255)[0]
    beside = ops.cross_entropy(outputs.auxiliary.data, labels, ignore_label=255)[0]
    present = np.array([[1, 0, 0], [1, 1, 0]])
    presence = ops.bce_with_logits(outputs.presence.data, present)[0]
    losses = net.losses(outputs, labels, CrossEntropy(255))
    assert losses["pixels"].data == main
    np.testing.assert_allclose(losses["auxiliary"].data, 0.2 * beside, rtol=1e-6)
    np.testing.assert_allclose(losses["presence"].data, 0.2 * presence, rtol=1e-6)
    np.testing.assert_allclose(total(losses).data, main + 0.2 * beside + 0.2 * presence, rtol=1e-6)
    other = small("encnet", auxiliary_weight=0.4, presence_weight=0).losses(outputs, labels, CrossEntropy(255))
    np.testing.assert_allclose(total(other).data, main + 0.4 * beside, rtol=1e-6)
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(("head", "weight"), [("fcn", 0.2), ("psp", 0.4), ("deeplab", 0.4)])
def test_auxiliary_weights_of_the_recipes(rng, head, weight):
    net = small(head)
    outputs = net.outputs(rng.random((1, 9, 8, 2), np.float32))
    labels = rng.integers(0, 3, (1, 9, 8))
    main, beside = (ops.cross_entropy(logits.data, labels)[0] for logits in outputs[:2])
    loss = total(net.losses(outputs, labels, CrossEntropy()))
    np.testing.assert_allclose(loss.data, main + weight * beside, rtol=1e-6)


def test_without_auxiliary_head(rng):
    net = small("fcn", auxiliary=False)
    outputs = net.outputs(rng.random((1, 9, 8, 2), np.float32))
    assert outputs.auxiliary is None
    labels = rng.integers(0, 3, (1, 9, 8))
    expected = ops.cross_entropy(outputs.logits.data, labels)[0]
    losses = net.losses(outputs, labels, CrossEntropy())
    assert list(losses) == ["pixels"]
    np.testing.assert_allclose(losses["pixels"].data, expected, rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="head must be one of 'fcn', 'psp', 'encnet', 'deeplab'; got 'asp'"):
        small("asp")
    with pytest.raises(ValueError, match="joint must be one of 'jpu', 'jpu_x', None; got 'jpux'"):
        small(joint="jpux")
    with pytest.raises(ValueError, match=r"backbone must be one of 'resnet18', .*; got 'vgg16'"):
        small(backbone="vgg16")
    with pytest.raises(ValueError, match="lateral=True is for head=\"encnet\", and head is 'psp'"):
        small("psp", lateral=True)
    with pytest.raises(ValueError, match="codewords must be at least 1, got 0"):
        small(codewords=0)
    with pytest.raises(ValueError, match=r"images must have the shape \(N, H, W, 2\), got \(1, 9, 8, 3\)"):
        small()(np.zeros((1, 9, 8, 3), np.float32))


@pytest.mark.slow
def test_learns_four_images_by_heart(learn_by_heart):
    """With the losses of the auxiliary head and of the presence of classes."""
    net = FastFCN(3, 11, head="encnet", backbone="resnet18", width=0.25, rng=np.random.default_rng(0))
    assert learn_by_heart(net, size=(193, 257), part=0.3) >= 0.95
