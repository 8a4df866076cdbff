"""What is learned in the network of each name: the numbers of the papers, the releases, or of a count by hand."""

import numpy as np
import pytest

from tinyseg import models
from tinyseg.models.summary import sketch

# Channels of the image, classes, parameters. Other settings, and the parts, are in the tests of each family.
COUNTS = {
    "crf_rnn_fcn8s": (3, 21, 134_362_751 + 3 * 21**2),  # FCN-8s and three matrices between the classes
    "crf_rnn_unet": (3, 21, 31_038_933 + 3 * 21**2),
    "deeplab_v1_4x4": (3, 21, 65_140_565),
    "deeplab_v1_7x7": (3, 21, 134_346_581),
    "deeplab_v1_largefov": (3, 21, 20_505_429),
    "deeplab_v1_msc": (3, 21, 21_711_445),
    "deeplab_v2_resnet101": (3, 21, 44_048_532),
    "deeplab_v2_vgg16": (3, 21, 37_877_652),
    "deeplab_v3_resnet50": (3, 21, 39_048_533),
    "deeplab_v3_resnet101": (3, 21, 58_040_661),
    "deeplab_v3plus_resnet101": (3, 21, 59_344_309),
    "deeplab_v3plus_xception65": (3, 21, 41_055_413),
    "deeplabv3_resnet50": (3, 21, 42_004_074),
    "deeplabv3_resnet101": (3, 21, 60_996_202),
    "fastfcn_deeplab_resnet50": (3, 59, 61_882_934),
    "fastfcn_deeplab_resnet101": (3, 59, 80_875_062),
    "fastfcn_encnet_resnet50": (3, 59, 47_394_769),
    "fastfcn_encnet_resnet101": (3, 59, 66_386_897),
    "fastfcn_fcn_resnet50": (3, 59, 55_210_806),
    "fastfcn_fcn_resnet101": (3, 59, 74_202_934),
    "fastfcn_psp_resnet50": (3, 59, 68_846_390),
    "fastfcn_psp_resnet101": (3, 59, 87_838_518),
    "fc_densenet56": (3, 11, 1_376_795),
    "fc_densenet67": (3, 11, 3_463_243),
    "fc_densenet103": (3, 11, 9_322_091),
    "fcn32s": (3, 21, 134_346_581),
    "fcn16s": (3, 21, 134_357_354),
    "fcn8s": (3, 21, 134_362_751),
    "fcn8s_at_once": (3, 21, 134_362_751),
    "fcn_alexnet": (3, 21, 56_954_261),
    "fcn_googlenet": (3, 21, 5_995_077),
    "fcn_resnet50": (3, 21, 35_322_218),
    "fcn_resnet101": (3, 21, 54_314_346),
    "gscnn_resnet50": (3, 19, 40_523_181),
    "gscnn_resnet101": (3, 19, 59_515_309),
    "gscnn_wideresnet38": (3, 19, 137_278_190 - 65),  # without a side output that the release never uses
    "plain": (3, 21, 1_792 + 7 * 36_928 + 1_365),
    "unet": (1, 2, 31_030_658),
    "unet_release": (1, 2, 31_100_354),
    # Two numbers for each channel of the 18 normalised convolutions instead of a bias.
    "unet_padded": (3, 21, 31_033_045 + 2 * (1024 + 2 * (512 + 256 + 128 + 64))),
}


def test_every_name_is_in_the_table():
    assert set(COUNTS) == set(models.MODELS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    in_channels, classes, parameters = COUNTS[name]
    net = sketch(models.create, name, in_channels, classes)
    assert (net.in_channels, net.classes) == (in_channels, classes)
    assert net.num_parameters() == parameters


# One network of each family, in a small size.
SMALL_RESNET = {"backbone": "resnet18", "width": 1 / 16}
FAMILIES = {
    "deeplab_v1_largefov": {"width": 1 / 64},
    "deeplab_v2_resnet101": SMALL_RESNET,
    "deeplab_v3_resnet50": SMALL_RESNET,
    "deeplab_v3plus_xception65": {"backbone": "xception41", "width": 1 / 64},
    "fastfcn_psp_resnet50": SMALL_RESNET,
    "fc_densenet56": {"growth": 1},
    "fcn8s": {"width": 1 / 64},
    "fcn_resnet50": {"depth": 18, "width": 1 / 16},
    "gscnn_wideresnet38": {"width": 1 / 64},
    "plain": {"width": 2},
    "unet": {"base": 1},
    "unet_padded": {"base": 1},
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(0, 40), (40, 0)])
def test_an_image_without_pixels(name, size):
    net = models.create(name, 3, 2, **FAMILIES[name])
    with pytest.raises(ValueError, match=r"needs? (at least 1 x 1|length 1|at least 32 x 32)|at least 188 x 188"):
        net(np.zeros((1, *size, 3), np.float32))
