"""ResNet: against torchvision, the rates of its dilated forms, and what dilation must not change."""

import numpy as np
import pytest

from tinyseg.models import backbones
from tinyseg.models.backbones.resnet import STYLES, ResNet
from tinyseg.models.summary import sketch
from tinyseg.tape import no_grad


def small(**settings):
    return ResNet(3, **({"classes": 4, "width": 0.06, "rng": np.random.default_rng(3)} | settings))


def rates(net):
    """Of the 3x3 convolutions with the stride (or that lost it), in each unit of layer2 to layer4."""
    return [[unit.conv2.options["dilation"] for unit in layer] for layer in (net.layer2, net.layer3, net.layer4)]


def image(*size, batch=1):
    return np.random.default_rng(4).standard_normal((batch, *size, 3)).astype(np.float32)


# ------------------------------------------------------------------------------------------ against torchvision


@pytest.mark.oracle
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_same_logits_as_torchvision(depth, torch, torchvision, random_statistics, carry_weights, channels_first):
    theirs = random_statistics(getattr(torchvision.models, f"resnet{depth}")(num_classes=10)).eval()
    ours = carry_weights(theirs, sketch(backbones.create, f"resnet{depth}", classes=10)).eval()
    x = image(64, 81, batch=2)
    with torch.no_grad(), no_grad():
        expected, logits = theirs(channels_first(x)).numpy(), ours(x).data
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("output_stride", [16, 8])
def test_same_dilation_as_torchvision(
    output_stride, torch, torchvision, random_statistics, carry_weights, channels_first
):
    replaced = [False, output_stride == 8, True]
    theirs = torchvision.models.resnet50(num_classes=10, replace_stride_with_dilation=replaced)
    theirs = random_statistics(theirs).eval()
    ours = carry_weights(theirs, sketch(backbones.create, "resnet50", classes=10, output_stride=output_stride))
    x = image(67, 48)
    trunk = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad(), no_grad():
        expected, last = trunk(channels_first(x)).numpy(), ours.eval().stages(x)["layer4"].data
    scale = np.abs(expected).max()
    np.testing.assert_allclose(last.transpose(0, 3, 1, 2) / scale, expected / scale, atol=1e-4)


@pytest.mark.oracle
def test_same_training_step_as_torchvision(torch, torchvision, random_statistics, carry_weights, channels_first):
    """Logits with the batch's statistics, and the running ones afterwards."""
    theirs = random_statistics(torchvision.models.resnet18(num_classes=10)).train()
    ours = carry_weights(theirs, sketch(backbones.create, "resnet18", classes=10)).train()
    x = image(65, 97, batch=3)
    with torch.no_grad(), no_grad():
        expected, logits = theirs(channels_first(x)).numpy(), ours(x).data
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    for name, array in ours.state_dict().items():
        if "running" in name:
            np.testing.assert_allclose(array, theirs.state_dict()[name].numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("style", ["caffe", "slim"])
def test_strides_of_the_other_styles(style, torch, carry_weights, channels_first):
    """The same weights with the strides elsewhere, computed step by step in PyTorch from the published tables."""
    functional = torch.nn.functional
    ours = small(depth=50, style=style)
    with no_grad():
        ours(image(97, 97, batch=4))  # moves the running statistics
    ours.eval()
    state = {name: torch.from_numpy(array) for name, array in ours.state_dict().items()}

    def conv(x, name, **options):
        return functional.conv2d(x, state[f"{name}.weight"].permute(3, 2, 0, 1), **options)

    def norm(x, name):
        moments = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return functional.batch_norm(x, *moments, state[f"{name}.weight"], state[f"{name}.bias"])

    x = image(70, 97)
    y = channels_first(x)
    y = norm(conv(y, "conv1", stride=2, padding=3), "bn1").relu()
    y = functional.max_pool2d(y, 3, 2, 1, ceil_mode=style == "caffe")
    for stage, units in enumerate((3, 4, 6, 3), start=1):
        for unit in range(units):
            name = f"layer{stage}.{unit}"
            if style == "caffe":
                first, second = (2 if stage > 1 and unit == 0 else 1), 1
            else:
                first, second = 1, (2 if stage < 4 and unit == units - 1 else 1)
            shortcut = y[:, :, :: first * second, :: first * second]
            if unit == 0:
                shortcut = norm(conv(shortcut, f"{name}.downsample.0"), f"{name}.downsample.1")
            y = norm(conv(y, f"{name}.conv1", stride=first), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", stride=second, padding=1), f"{name}.bn2").relu()
            y = (norm(conv(y, f"{name}.conv3"), f"{name}.bn3") + shortcut).relu()
    with no_grad():
        last = ours.stages(x)["layer4"].data
    expected = y.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(last, expected, atol=1e-4 * np.abs(expected).max())


# ----------------------------------------------------------------------------------------------------- dilation


def test_rates_of_the_table():
    ones, twos = [1] * 4, [2] * 6
    assert rates(small()) == [ones, [1] * 6, [1] * 3]
    assert rates(small(output_stride=16)) == [ones, [1] * 6, [1, 2, 2]]
    assert rates(small(output_stride=8)) == [ones, [1, 2, 2, 2, 2, 2], [2, 4, 4]]
    for style in ("caffe", "slim"):
        assert rates(small(output_stride=16, style=style)) == [ones, [1] * 6, [2, 2, 2]]
        assert rates(small(output_stride=8, style=style)) == [ones, twos, [4, 4, 4]]
    assert rates(small(output_stride=8, first_rate="new")) == [ones, twos, [4, 4, 4]]


@pytest.mark.parametrize("style", STYLES)
def test_multi_grid_multiplies_the_rates_of_deeplab_v3(style):
    for output_stride, expected in ((32, [1, 2, 4]), (16, [2, 4, 8]), (8, [4, 8, 16])):
        net = small(style=style, output_stride=output_stride, multi_grid=(1, 2, 4), first_rate="new")
        assert rates(net)[2] == expected


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_a_dilated_network_computes_the_strided_one_at_more_places(style, depth, size):
    net = small(style=style, depth=depth)
    with no_grad():
        net(image(96, 96, batch=2))
        net.eval()
        maps = {}
        for output_stride in (32, 16, 8):
            net.set_dilation(output_stride)
            maps[output_stride] = net.stages(image(*size))["layer4"].data
    scale = np.abs(maps[32]).max()
    for output_stride, step in ((16, 2), (8, 4)):
        subsampled = maps[output_stride][:, ::step, ::step]
        np.testing.assert_allclose(subsampled / scale, maps[32] / scale, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_set_dilation_is_the_same_as_building_so(style):
    options = {"output_stride": 8, "multi_grid": (1, 2, 1), "first_rate": "new"}
    built, changed = small(style=style, **options).eval(), small(style=style).eval()
    changed.set_dilation(8, multi_grid=(1, 2, 1), first_rate="new")
    x = image(41, 57)
    with no_grad():
        np.testing.assert_array_equal(built(x).data, changed(x).data)
        changed.set_dilation(32)
        np.testing.assert_array_equal(small(style=style).eval()(x).data, changed(x).data)
    assert changed.stage_strides == small(style=style).stage_strides


def test_strides_are_announced():
    assert small().stage_strides == {
        "conv1": 2,
        "low_level": 4,
        "layer1": 4,
        "layer2": 8,
        "layer3": 16,
        "layer4": 32,
    }
    assert list(small(output_stride=8).stage_strides.values()) == [2, 4, 4, 8, 8, 8]
    assert list(small(style="slim").stage_strides.values()) == [2, 4, 8, 16, 32, 32]
    assert list(small(style="slim", output_stride=16).stage_strides.values()) == [2, 4, 8, 16, 16, 16]


# -------------------------------------------------------------------------------------------------- other settings


def test_low_level_of_the_slim_style_is_a_correction_before_it_is_added():
    net = small(style="slim").eval()
    maps = {}
    with no_grad():
        x = image(65, 65)
        maps = net.stages(x)
        y = net.maxpool(maps["conv1"])
        y = net.layer1[0](y)
        np.testing.assert_array_equal(net.layer1[1].correction(y).data, maps["low_level"].data)
    assert (maps["low_level"].data < 0).any()  # no ReLU yet
    torchvision_maps = small().eval().stages(x)
    assert torchvision_maps["low_level"] is torchvision_maps["layer1"]


def test_units_start_as_the_identity_with_zero_last():
    net = small(depth=34, zero_last=True)
    x = net.maxpool(net.stages(image(33, 40))["conv1"])
    np.testing.assert_array_equal(net.layer1(x).data, x.data)


@pytest.mark.parametrize("stem", ["64-64-128", "32-32-64"])
def test_deep_stems(stem):
    net = small(stem=stem, width=0.25)
    names = [name for name, _ in net.named_parameters() if name.startswith("conv1")]
    assert [name for name in names if "weight" in name] == [f"conv1.{index}.weight" for index in (0, 1, 3, 4, 6)]
    with no_grad():
        maps = net.stages(image(33, 44))
    assert maps["conv1"].shape == (1, 17, 22, int(stem.split("-")[2]) // 4)
    assert maps["layer4"].shape == (1, 2, 2, 512)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("depth", "stem"), [(18, "7x7"), (50, "64-64-128")])
def test_gradient_of_dilated_forms(style, depth, stem, check_network_gradient):
    net = small(style=style, depth=depth, stem=stem, output_stride=8)
    check_network_gradient(net, (19, 26))
