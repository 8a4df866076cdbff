r"""AlexNet: five convolutions and three fully connected layers.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012,
figure 2. For an image of 227 x 227 pixels:

    stage    layer                       channels   groups   size      torchvision's, for 224 x 224
    conv1    11x11, stride 4                96        1       55        64 channels, padding 2    55
    pool1    max 3x3, stride 2              96                27        no normalisation          27
    conv2    5x5, padding 2                256        2       27       192
    pool2    max 3x3, stride 2             256                13                                  13
    conv3    3x3, padding 1                384        1       13       384
    conv4    3x3, padding 1                384        2       13       256
    conv5    3x3, padding 1                256        2       13       256
    pool5    max 3x3, stride 2             256                 6                                   6
    fc6      fully connected              4096
    fc7      fully connected              4096
    fc8      fully connected              1000
                       parameters    60,965,224  (62,378,344 with groups=1)               61,100,840

A ReLU follows each layer but the last. Local response normalisation stands at pool1 and pool2:

    variant        normalisation                        dropout 0.5
    "caffenet"     after the pooling; what FCN uses     after fc6 and fc7      the default
    "alexnet"      before the pooling, as in the paper  after fc6 and fc7
    "torchvision"  none                                 before fc6 and fc7

Groups are what the paper's two GPUs left behind: half of the output channels see half of the input channels.
"torchvision" is the one-tower network of Krizhevsky, "One weird trick for parallelizing convolutional neural
networks", 2014; its weights have torchvision's names: features.0.weight, classifier.6.bias.

Stages: pool1, pool2 and pool5, with 96, 256 and 256 channels and the strides 8, 16 and 32. The normalisation of
"caffenet" belongs to the next stage.

Differences from the paper
    * The constants of the normalisation are Caffe's (k = 1, alpha = 1e-4 / 5 for each of the 5 channels) instead
      of the paper's (k = 2, alpha = 1e-4).
    * Images of 227 instead of 224 pixels, which would not fit 55 windows. Of other sizes, the last map is averaged
      to 6 x 6. Poolings of the Caffe variants round up, and `first_padding` may be set, to 100 in FCN.
    * Weights start as N(0, 2 / inputs) and biases as 0, instead of N(0, 0.01^2), and 1 for some of the biases.
    * `width` multiplies all channels.
"""

import numpy as np

from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.classifier import Classifier
from tinyseg.tape import Tensor

VARIANTS = ("caffenet", "alexnet", "torchvision")
STAGE_STRIDES = {"pool1": 8, "pool2": 16, "pool5": 32}


class AlexNet(Classifier):
    """See the top of this file.

    in_channels    of the image
    classes        of the classifier, or None for the trunk alone
    variant        "caffenet", "alexnet" or "torchvision"
    groups         of conv2, conv4 and conv5; by default 2, and 1 in "torchvision"
    first_padding  of conv1; by default 0, and 2 in "torchvision"
    width          multiplies all channels
    dropout        rate between the fully connected layers
    rng            draws the initial weights
    """

    pooled_side = 6
    last_stage = "pool5"

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        variant: str = "caffenet",
        groups: int | None = None,
        first_padding: int | None = None,
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        classifier.check_settings("AlexNet", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("AlexNet", "variant", variant, VARIANTS)
        one_tower = variant == "torchvision"
        groups = (1 if one_tower else 2) if groups is None else groups
        padding = (2 if one_tower else 0) if first_padding is None else first_padding
        self.in_channels, self.classes, self.variant = in_channels, classes, variant
        # conv1 needs so many windows that the poolings leave something: 15 of them, or 8 where they round up.
        windows = 15 if one_tower else 8
        self.smallest_side = max(1, 11 + 4 * (windows - 1) - 2 * padding)

        widths = (64, 192, 384, 256, 256) if one_tower else (96, 256, 384, 384, 256)
        c1, c2, c3, c4, c5 = (classifier.scaled(channels, width, multiple=groups) for channels in widths)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, 11, stride=4, padding=padding, rng=rng),
            nn.ReLU(),
            *pooling(variant),
            nn.Conv2d(c1, c2, 5, padding=2, groups=groups, rng=rng),
            nn.ReLU(),
            *pooling(variant),
            nn.Conv2d(c2, c3, 3, padding=1, rng=rng),
            nn.ReLU(),
            nn.Conv2d(c3, c4, 3, padding=1, groups=groups, rng=rng),
            nn.ReLU(),
            nn.Conv2d(c4, c5, 3, padding=1, groups=groups, rng=rng),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, ceil_mode=not one_tower),
        )
        self.stage_channels = {"pool1": c1, "pool2": c2, "pool5": c5}
        self.stage_strides = dict(STAGE_STRIDES)

        hidden = classifier.scaled(4096, width)
        self.classifier = None
        if classes is not None:
            fc6 = nn.Linear(6 * 6 * c5, hidden, rng=rng)
            fc7 = nn.Linear(hidden, hidden, rng=rng)
            fc8 = nn.Linear(hidden, classes, init=classifier.LINEAR_UNIFORM, rng=rng)
            drop6, drop7 = nn.Dropout(dropout, rng=rng), nn.Dropout(dropout, rng=rng)
            self.classifier = (
                nn.Sequential(drop6, fc6, nn.ReLU(), drop7, fc7, nn.ReLU(), fc8)
                if one_tower
                else nn.Sequential(fc6, nn.ReLU(), drop6, fc7, nn.ReLU(), drop7, fc8)
            )

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        return classifier.up_to_each_pool(self.features, x, self.stage_channels)


def pooling(variant: str) -> list[nn.Module]:
    """pool1 or pool2, and the normalisation beside it."""
    pool = nn.MaxPool2d(3, stride=2, ceil_mode=variant != "torchvision")
    norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    return {"caffenet": [pool, norm], "alexnet": [norm, pool], "torchvision": [pool]}[variant]
