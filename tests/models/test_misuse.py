"""Wrong channels, axes, classes, output strides, and weights of another model: errors that say what fits."""

import numpy as np
import pytest

from tinyseg import interop, models
from tinyseg.models.network import CrossEntropy

SMALL = {
    "crf_rnn_unet": {"base": 2, "depth": 1},
    "deeplab_v1_msc": {"width": 1 / 32},
    "deeplab_v2_resnet101": {"backbone": "resnet18", "width": 1 / 16},
    "deeplab_v2_vgg16": {"width": 1 / 32},
    "deeplab_v3_resnet50": {"backbone": "resnet18", "width": 1 / 16},
    "deeplab_v3plus_xception65": {"backbone": "xception41", "width": 1 / 32},
    "deeplabv3_resnet50": {"depth": 18, "width": 1 / 16},
    "fastfcn_encnet_resnet50": {"backbone": "resnet18", "width": 1 / 16},
    "fc_densenet56": {"growth": 2},
    "fcn32s": {"width": 1 / 64},
    "fcn_googlenet": {"width": 1 / 8},
    "fcn_resnet50": {"depth": 18, "width": 1 / 16},
    "gscnn_resnet50": {"backbone": "resnet18", "width": 1 / 16},
    "plain": {"width": 2, "depth": 2},
    "unet": {"base": 2, "depth": 1},
    "unet_padded": {"base": 2, "depth": 1},
}


def create(name, in_channels=3, classes=4, **changes):
    return models.create(name, in_channels, classes, **SMALL[name] | changes)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((1, 40, 41, 4), "the number of channels is set with in_channels"),
        ((1, 40, 41, 1), "the number of channels is set with in_channels"),
        ((40, 41, 3), r"pass image\[None\] for a batch of one"),
        ((1, 3, 40, 41), r"channels come last here, pass x.transpose\(0, 2, 3, 1\)"),
        ((40, 41), "the number of channels is set with in_channels"),
    ],
)
def test_wrong_images(name, shape, remedy):
    net = create(name)
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"{type(net).__name__}: images must have the shape \(N, H, W, 3\), got {got}; {remedy}"
    with pytest.raises(ValueError, match=message):
        net(np.zeros(shape, np.float32))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("setting", ["classes", "in_channels"])
def test_no_classes_and_no_channels(name, setting):
    with pytest.raises(ValueError, match=rf"\w+: {setting} must be at least 1, got 0"):
        create(name, **{setting: 0})


@pytest.mark.parametrize("name", ["unet_padded", "fcn_resnet50", "fastfcn_encnet_resnet50", "gscnn_resnet50"])
def test_labels_of_more_classes_than_the_network_has(name, rng):
    net = create(name)
    outputs = net.outputs(rng.random((1, 32, 32, 3), np.float32))
    labels = rng.integers(0, 4, (1, 32, 32))
    labels[0, 5, 7] = 9
    message = r"labels must lie in 0 .. 3, but 1 of 1024 pixels have 9; only 255 is ignored"
    with pytest.raises(ValueError, match=message):
        net.losses(outputs, labels, CrossEntropy(255))


@pytest.mark.parametrize("name", ["deeplab_v3_resnet50", "deeplab_v3plus_xception65"])
def test_wrong_output_strides(name):
    for make in (lambda: create(name, output_stride=4), lambda: create(name).set_output_stride(4)):
        with pytest.raises(ValueError, match=r"DeepLabV3\w*: output_stride must be one of 32, 16, 8; got 4"):
            make()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("fcn32s", "deeplab_v1_msc"),  # both on VGG-16
        ("deeplab_v3_resnet50", "deeplab_v2_resnet101"),  # both on a ResNet
        ("fcn_resnet50", "deeplabv3_resnet50"),  # both of torchvision
        ("unet_padded", "fc_densenet56"),
        ("gscnn_resnet50", "fastfcn_encnet_resnet50"),
    ],
)
def test_weights_of_another_model(tmp_path, name, other):
    net, path = create(name), tmp_path / "other.safetensors"
    before = net.state_dict()
    with pytest.raises(
        ValueError, match=r"the state belongs to another network, or to one with other settings"
    ) as e:
        net.load_state_dict(create(other).state_dict())
    assert "missing: " in str(e.value) and "unexpected: " in str(e.value)
    interop.save_weights(path, create(other))
    with pytest.raises(interop.WeightsError, match=r"does not fit \w+: it belongs to another network") as e:
        interop.load_weights(net, path)
    assert "missing: " in str(e.value) and "unexpected: " in str(e.value)
    assert all(np.array_equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"unet"}))
def test_weights_for_other_classes_or_channels(name):
    net = create(name)
    for changes in ({"classes": 5}, {"in_channels": 1}):
        with pytest.raises(ValueError, match=r"shape: .* is \(.*\) here and \(.*\) in the state"):
            net.load_state_dict(create(name, **changes).state_dict())
