"""What all DeepLab networks, and torchvision's two, have in common: counts, costs, sizes, gradients, any image."""

import numpy as np
import pytest

from tinyseg import models, nn
from tinyseg.models.deeplab import DeepLab
from tinyseg.models.summary import sketch, summarise

BETA = {"stem": "64-64-128"}  # the stem of the released DeepLab v3

# Name, settings, parameters learned with 21 classes: the facts of the papers and of the released networks.
COUNTS = [
    ("deeplab_v1_7x7", {}, 134_346_581),
    ("deeplab_v1_4x4", {}, 65_140_565),
    ("deeplab_v1_4x4", {"fc6_rate": 8}, 65_140_565),
    ("deeplab_v1_largefov", {}, 20_505_429),
    ("deeplab_v1_msc", {}, 21_711_445),
    ("deeplab_v2_vgg16", {}, 37_877_652),
    ("deeplab_v2_vgg16", {"aspp": "S"}, 37_877_652),
    ("deeplab_v2_vgg16", {"aspp": "LargeFOV"}, 20_505_429),
    ("deeplab_v2_resnet101", {}, 44_048_532),
    ("deeplab_v2_resnet101", {"frozen_norms": True}, 44_048_532 - 105_344),
    ("deeplab_v2_resnet101", {"aspp": "LargeFOV"}, 42_887_253),
    ("deeplab_v3_resnet50", {}, 39_048_533),
    ("deeplab_v3_resnet50", BETA, 39_172_309),
    ("deeplab_v3_resnet101", {}, 58_040_661),
    ("deeplab_v3_resnet101", BETA, 58_164_437),
    ("deeplab_v3_resnet50", {"head": "block7"}, 63_714_389),
    ("deeplab_v3_resnet101", {"head": "block7"}, 82_706_517),
    ("deeplab_v3_resnet101", {"head": "block6"}, 82_706_517 - 13_387_776),
    ("deeplab_v3_resnet101", {"backbone": "xception65"}, 53_407_813),
    ("deeplab_v3plus_resnet101", {}, 59_344_309),
    ("deeplab_v3plus_resnet101", BETA, 59_468_085),
    ("deeplab_v3plus_resnet101", {"separable": True}, 45_688_261),
    ("deeplab_v3plus_resnet101", {"backbone": "resnet50"}, 40_352_181),
    ("deeplab_v3plus_resnet101", {"backbone": "resnet50"} | BETA, 40_475_957),
    ("deeplab_v3plus_xception65", {}, 41_055_413),
    ("deeplab_v3plus_xception65", {"separable": False}, 54_711_461),
    ("deeplab_v3plus_xception65", {"backbone": "xception71"}, 43_477_837),
    ("deeplabv3_resnet50", {}, 42_004_074),
    ("deeplabv3_resnet50", {"auxiliary": False}, 39_638_869),
    ("deeplabv3_resnet101", {}, 60_996_202),
    ("deeplabv3_resnet101", {"auxiliary": False}, 58_630_997),
    ("fcn_resnet50", {}, 35_322_218),
    ("fcn_resnet50", {"auxiliary": False}, 32_957_013),
    ("fcn_resnet101", {}, 54_314_346),
    ("fcn_resnet101", {"auxiliary": False}, 51_949_141),
]

# Name, settings, billions of multiply-adds for 513 x 513 pixels: the papers' (52.43, 81.02, 276.18, 68.00, 240.85,
# 89.76, 262.59, 54.17, 177.10) without the padding that their framework adds to dilated convolutions.
COSTS = [
    ("deeplab_v3_resnet101", {"output_stride": 32} | BETA, 51.41),
    ("deeplab_v3_resnet101", {"output_stride": 16} | BETA, 76.05),
    ("deeplab_v3_resnet101", {"output_stride": 8} | BETA, 252.25),
    ("deeplab_v3_resnet101", {"backbone": "xception65"}, 64.92),
    ("deeplab_v3_resnet101", {"backbone": "xception65", "output_stride": 8}, 227.04),
    ("deeplab_v3plus_xception65", {"separable": False}, 86.68),
    ("deeplab_v3plus_xception65", {"separable": False, "output_stride": 8}, 248.78),
    ("deeplab_v3plus_xception65", {}, 54.04),
    ("deeplab_v3plus_xception65", {"output_stride": 8}, 176.85),
]

# Each family and each of its parts once, in a size for tests.
SMALL = {
    "v1": ("deeplab_v1_largefov", {"width": 1 / 32}),
    "v1, 4x4": ("deeplab_v1_4x4", {"width": 1 / 64, "average_pool": False}),
    "v1, multi-scale": ("deeplab_v1_msc", {"width": 1 / 32}),
    "v2, VGG": ("deeplab_v2_vgg16", {"width": 1 / 64, "aspp": "S"}),
    "v2, ResNet": ("deeplab_v2_resnet101", {"backbone": "resnet18", "width": 1 / 16}),
    "v2, multi-scale": ("deeplab_v2_resnet101", {"backbone": "resnet18", "width": 1 / 16, "multi_scale": True}),
    "v3, ResNet-50": ("deeplab_v3_resnet50", {"width": 1 / 16}),
    "v3, deep stem": ("deeplab_v3_resnet50", {"backbone": "resnet18", "width": 1 / 16, "output_stride": 8} | BETA),
    "v3, block6": ("deeplab_v3_resnet50", {"backbone": "resnet18", "width": 1 / 16, "head": "block6"}),
    "v3+, ResNet": ("deeplab_v3plus_resnet101", {"backbone": "resnet18", "width": 1 / 16}),
    "v3+, Xception": ("deeplab_v3plus_xception65", {"backbone": "xception41", "width": 1 / 64}),
    "torchvision's FCN": ("fcn_resnet50", {"depth": 18, "width": 1 / 16, "auxiliary": False}),
    "torchvision's v3": ("deeplabv3_resnet50", {"depth": 18, "width": 1 / 16, "auxiliary": False}),
}


def small(key, **settings):
    name, own = SMALL[key]
    settings = {"in_channels": 2, "classes": 3} | own | settings
    return models.create(name, rng=np.random.default_rng(1), **settings)


every_small_one = pytest.mark.parametrize("key", SMALL)


@pytest.mark.parametrize(("name", "settings", "parameters"), COUNTS)
def test_parameter_counts(name, settings, parameters):
    assert sketch(models.create, name, **settings).num_parameters() == parameters


@pytest.mark.parametrize(("name", "settings", "billions"), COSTS)
def test_multiply_adds(name, settings, billions):
    rows = summarise(sketch(models.create, name, **settings), 513, 513)
    assert round(sum(row.multiply_adds for row in rows) / 1e9, 2) == billions


@every_small_one
@pytest.mark.parametrize("size", [(1, 1), (7, 4), (33, 50), (40, 65)])
def test_any_size_has_an_answer_for_each_pixel(key, size):
    net = small(key)
    for batch in (1, 2):
        image = np.random.default_rng(0).standard_normal((batch, *size, 2)).astype(np.float32)
        for training in (True, False):
            logits = net.train(training)(image).data
            assert logits.shape == (batch, *size, 3)
            assert np.isfinite(logits).all()


@every_small_one
def test_gradient_through_the_whole_network(key, check_network_gradient):
    check_network_gradient(small(key), (41, 34))


@pytest.mark.parametrize("key", ["v3, ResNet-50", "v3+, Xception", "torchvision's v3"])
def test_gradient_for_a_batch_of_one(key, check_network_gradient):
    check_network_gradient(small(key), (41, 50), batch=1)


@pytest.mark.parametrize("key", ["v1", "v2, multi-scale", "v3, ResNet-50", "v3+, Xception"])
def test_an_image_off_the_grid_is_padded_at_the_bottom_and_right(key):
    net = small(key).eval()
    step = net.output_stride
    image = np.random.default_rng(0).standard_normal((1, 4 * step - 2, 3 * step + 2, 2)).astype(np.float32)
    padded = np.zeros((1, 4 * step + 1, 4 * step + 1, 2), np.float32)
    padded[:, : image.shape[1], : image.shape[2]] = image
    assert np.array_equal(net(image).data, net(padded).data[:, : image.shape[1], : image.shape[2]])


@pytest.mark.parametrize(
    ("key", "stride"), [("v1", 8), ("v2, VGG", 8), ("v3, ResNet-50", 16), ("v3+, Xception", 4)]
)
def test_scores_belong_to_every_so_many_pixels(key, stride):
    net = small(key).eval()
    image = np.random.default_rng(0).standard_normal((2, 65, 49, 2)).astype(np.float32)
    scores = net.scores(image).data
    assert scores.shape == (2, 64 // stride + 1, 48 // stride + 1, 3)
    np.testing.assert_allclose(net(image).data[:, ::stride, ::stride], scores, rtol=1e-5, atol=1e-6)
    # Shrunk labels of any image have the size of its scores.
    labels = np.zeros((2, 51, 46), np.int64)
    assert net.scores(image[:, :51, :46]).shape[:3] == labels[:, ::stride, ::stride].shape


def test_frozen_norms_neither_move_nor_use_the_batch():
    net = small("v3, ResNet-50")
    image = np.random.default_rng(0).standard_normal((2, 33, 49, 2)).astype(np.float32)
    net.aspp.dropout.rate = 0.0
    net.freeze_norms(scale_and_shift=True)
    before = net.state_dict()
    np.testing.assert_array_equal(net.train()(image).data, net.eval()(image).data)
    after = net.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.weight.requires_grad or norm.bias.requires_grad for norm in norms)
    net.freeze_norms(False)
    assert all(norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    net.train()(image)
    assert not np.array_equal(net.state_dict()["trunk.bn1.running_mean"], before["trunk.bn1.running_mean"])


@pytest.mark.parametrize("key", ["v3, ResNet-50", "v3+, Xception"])
def test_wrong_output_stride(key):
    net = small(key)
    with pytest.raises(ValueError, match=r"DeepLabV3.*output_stride must be one of 32, 16, 8; got 4"):
        net.set_output_stride(4)
    assert net.output_stride == 16


@every_small_one
def test_wrong_classes_and_channels(key):
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        small(key, classes=0)
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        small(key, in_channels=0)
    with pytest.raises(ValueError, match=r"shape \(N, H, W, 2\), got \(1, .*, 3\)"):
        small(key)(np.zeros((1, 9, 9, 3), np.float32))


def test_weights_of_another_network():
    with pytest.raises(ValueError, match=r"aspp\.project\.0\.weight"):
        small("v3, ResNet-50").load_state_dict(small("v3, ResNet-50", width=1 / 8).state_dict())


def test_names_of_the_family():
    for name in models.MODELS:
        if name.startswith("deeplab_"):
            assert issubclass(getattr(models.MODELS[name], "func", models.MODELS[name]), DeepLab), name


# Name, settings, and how to train.
SMALL_RESNET = {"backbone": "resnet18", "width": 1 / 4}
SMALL_VGG = {"width": 1 / 8, "dropout": 0.0}
BY_HEART = {
    "v1": ("deeplab_v1_largefov", SMALL_VGG, {"lr": 1e-3}),
    "v2, VGG": ("deeplab_v2_vgg16", SMALL_VGG, {"lr": 1e-3}),
    "v2, ResNet": ("deeplab_v2_resnet101", SMALL_RESNET, {"steps": 150}),
    "v3": ("deeplab_v3_resnet50", SMALL_RESNET | {"output_stride": 8, "dropout": 0.0}, {}),
    "v3+, ResNet": ("deeplab_v3plus_resnet101", SMALL_RESNET | {"separable": True, "dropout": 0.0}, {}),
    "v3+, Xception": (
        "deeplab_v3plus_xception65",
        {"backbone": "xception41", "width": 1 / 4, "dropout": 0.0},
        {"size": (145, 193), "part": 0.18, "steps": 150},
    ),
    "torchvision's FCN": ("fcn_resnet50", {"depth": 18, "width": 1 / 4, "auxiliary": False}, {"steps": 150}),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", BY_HEART)
def test_learns_four_images_by_heart(key, learn_by_heart):
    name, settings, training = BY_HEART[key]
    net = models.create(name, 3, 11, rng=np.random.default_rng(0), **settings)
    assert learn_by_heart(net, **{"size": (193, 257), "part": 0.3} | training) >= 0.95
