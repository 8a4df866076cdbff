r"""VGG-16: nothing but 3x3 convolutions, in five blocks with a max pooling after each.

Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1,
column D. For an image of 224 x 224 pixels:

    stage    layers                          channels    size     LargeFOV, for 321 x 321
             3x3, 3x3                          64         224      321
    pool1    max 2x2, stride 2                            112      161    max 3x3, stride 2
             3x3, 3x3                         128         112      161
    pool2    max 2x2, stride 2                             56       81    max 3x3, stride 2
             3x3, 3x3, 3x3                    256          56       81
    pool3    max 2x2, stride 2                             28       41    max 3x3, stride 2
             3x3, 3x3, 3x3                    512          28       41
    pool4    max 2x2, stride 2                             14       41    max 3x3, stride 1
             3x3, 3x3, 3x3                    512          14       41    dilation 2
    pool5    max 2x2, stride 2                              7       41    max 3x3, stride 1
    pool5a                                                          41    average 3x3, stride 1
    fc6      fully connected                 4096           1       41    3x3, dilation 12, 1024 channels
    fc7      fully connected                 4096           1       41    1x1, 1024 channels
    fc8      fully connected                 classes        1       41    1x1

A ReLU follows each convolution and each fully connected layer but the last, and dropout (0.5) follows fc6 and fc7.
Parameters for 1000 classes: 138,357,544, of which the convolutions are 14,714,688; with batch normalisation
138,365,992.

LargeFOV is the same network as DeepLab turned it into one of convolutions (Chen, Papandreou, Kokkinos, Murphy &
Yuille, "Semantic image segmentation with deep convolutional nets and fully connected CRFs", ICLR 2015): the last
two poolings lose their stride, what follows is dilated to see as much as before, and fc6 is a sparse window. It
has 20,505,429 parameters for 21 classes. The paper's other windows are settings of `fc6_kernel`, `fc6_rate` and
`fc_channels`: 7 x 7 with rate 4 and 4 x 4 with rate 4 or 8, both with 4096 channels.

Stages: pool1 to pool5, with 64, 128, 256, 512 and 512 channels and the strides 2, 4, 8, 16 and 32; in LargeFOV 2,
4, 8, 8 and 8, and pool5a. Names of weights are torchvision's: features.0.weight, classifier.6.bias.

Differences from the papers
    * `batch_norm` puts batch normalisation behind each convolution, which the paper did without. The convolutions
      keep their biases, as in torchvision.
    * Maps of another size than 7 x 7 are averaged to it before fc6, as in torchvision; the paper resizes images.
    * Poolings drop an odd last row or column; `ceil_mode` keeps it, as Caffe does. `first_padding` is that of the
      first convolution, 100 in FCN.
    * Pooling 3x3 instead of 2x2 and the average pool5a are in the released LargeFOV and not in its paper;
      DeepLab v2 leaves pool5a out: `average_pool=False`.
    * Initial weights are N(0, 2 / inputs) instead of N(0, 0.01^2), with which 16 layers do not start to learn.
    * `width` multiplies all channels, those of fc6 and fc7 too.
"""

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.classifier import Classifier
from tinyseg.tape import Tensor

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(Classifier):
    """VGG-16. See the top of this file.

    in_channels    of the image
    classes        of the classifier, or None for the trunk alone
    batch_norm     normalise after each convolution
    ceil_mode      poolings round up
    first_padding  of the first convolution
    width          multiplies all channels
    dropout        rate between the fully connected layers
    rng            draws the initial weights
    """

    pooled_side = 7
    last_stage = "pool5"

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        batch_norm: bool = False,
        ceil_mode: bool = False,
        first_padding: int = 1,
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        classifier.check_settings("VGG", in_channels=in_channels, classes=classes, width=width)
        self.in_channels, self.classes = in_channels, classes
        # Five halvings leave something; with 2 p - 2 pixels more from the first padding p.
        self.smallest_side = 1 if ceil_mode else max(1, 32 - 2 * (first_padding - 1))
        layers, channels = [], in_channels
        for block in BLOCKS:
            for out_channels in (classifier.scaled(number, width) for number in block):
                padding = 1 if layers else first_padding
                layers += convolution(channels, out_channels, padding=padding, batch_norm=batch_norm, rng=rng)
                channels = out_channels
            layers.append(nn.MaxPool2d(2, ceil_mode=ceil_mode))
        self.features = nn.Sequential(*layers)
        self.stage_channels, self.stage_strides = pooled_stages(width, strides=(2, 4, 8, 16, 32))
        hidden = classifier.scaled(4096, width)
        self.classifier = None
        if classes is not None:
            self.classifier = nn.Sequential(
                nn.Linear(7 * 7 * channels, hidden, rng=rng),
                nn.ReLU(),
                nn.Dropout(dropout, rng=rng),
                nn.Linear(hidden, hidden, rng=rng),
                nn.ReLU(),
                nn.Dropout(dropout, rng=rng),
                nn.Linear(hidden, classes, init=classifier.LINEAR_UNIFORM, rng=rng),
            )

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        return classifier.up_to_each_pool(self.features, x, self.stage_channels)


class VGGLargeFOV(Classifier):
    """VGG-16 with a large field of view and a fine grid. See the top of this file.

    forward:  (N, H, W, in_channels) -> logits (N, h, w, classes), h = (H - 1) // 8 + 1

    in_channels   of the image
    classes       of each pixel, or None for the trunk alone
    average_pool  have pool5a
    fc6_kernel    side of fc6's kernel
    fc6_rate      its dilation
    fc_channels   of fc6 and fc7
    width         multiplies all channels
    dropout       rate behind fc6 and fc7
    rng           draws the initial weights
    """

    heads = ("fc6", "fc7", "fc8")

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 21,
        *,
        average_pool: bool = True,
        fc6_kernel: int = 3,
        fc6_rate: int = 12,
        fc_channels: int = 1024,
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        classifier.check_settings("VGGLargeFOV", in_channels=in_channels, classes=classes, width=width)
        self.in_channels, self.classes = in_channels, classes
        layers, channels = [], in_channels
        for index, block in enumerate(BLOCKS):
            for out_channels in (classifier.scaled(number, width) for number in block):
                layers += convolution(channels, out_channels, rate=2 if index == 4 else 1, rng=rng)
                channels = out_channels
            layers.append(nn.MaxPool2d(3, stride=2 if index < 3 else 1, padding=1))
        self.features = nn.Sequential(*layers)
        self.stage_channels, self.stage_strides = pooled_stages(width, strides=(2, 4, 8, 8, 8))
        self.last_stage = "pool5"
        self.average_pool = average_pool
        if average_pool:
            self.last_stage = "pool5a"
            self.stage_channels["pool5a"], self.stage_strides["pool5a"] = channels, 8

        self.fc6 = self.fc7 = self.fc8 = None
        self.dropout6 = self.dropout7 = nn.Identity()
        if classes is not None:
            hidden = classifier.scaled(fc_channels, width)
            padding = (fc6_kernel - 1) * fc6_rate // 2  # the map keeps its size
            self.fc6 = nn.Conv2d(channels, hidden, fc6_kernel, padding=padding, dilation=fc6_rate, rng=rng)
            self.dropout6 = nn.Dropout(dropout, rng=rng)
            self.fc7 = nn.Conv2d(hidden, hidden, 1, rng=rng)
            self.dropout7 = nn.Dropout(dropout, rng=rng)
            self.fc8 = nn.Conv2d(hidden, classes, 1, init=nn.init.normal(0.01), rng=rng)

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        maps = classifier.up_to_each_pool(self.features, x, self.stage_channels)
        if self.average_pool:
            # Caffe's average divides by the whole window at the border, padding included.
            maps["pool5a"] = F.avg_pool2d(maps["pool5"], 3, stride=1, padding=1)
        return maps

    def classify(self, x: Tensor) -> Tensor:
        for layer in self.fully_connected():
            x = layer(x)
        return x

    def fully_connected(self) -> list[nn.Module]:
        """They are convolutions already."""
        if self.fc6 is None or self.fc7 is None or self.fc8 is None:
            return []
        return [self.fc6, nn.ReLU(), self.dropout6, self.fc7, nn.ReLU(), self.dropout7, self.fc8]


def convolution(
    in_channels: int,
    out_channels: int,
    *,
    padding: int = 1,
    rate: int = 1,
    batch_norm: bool = False,
    rng: np.random.Generator,
) -> list[nn.Module]:
    """A 3x3 convolution and ReLU, in as many places of a Sequential as torchvision's has."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=padding * rate, dilation=rate, rng=rng)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()] if batch_norm else [conv, nn.ReLU()]


def pooled_stages(width: float, *, strides: tuple[int, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Channels and strides of pool1 to pool5."""
    names = [f"pool{index}" for index in range(1, 6)]
    channels = [classifier.scaled(block[-1], width) for block in BLOCKS]
    return dict(zip(names, channels, strict=True)), dict(zip(names, strides, strict=True))
