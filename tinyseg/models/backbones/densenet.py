r"""DenseNet-121: each layer reads all maps made before it in its block.

Huang, Liu, van der Maaten & Weinberger, "Densely connected convolutional networks", CVPR 2017, table 1. For an
image of 224 x 224 pixels:

    stage          layers                              size    channels
    conv0          7x7, stride 2                        112      64
                   3x3 max pool, stride 2                56      64
    denseblock1    [1x1, 128 | 3x3, 32] x6               56     256 = 64 + 6 * 32
    transition1    1x1, 2x2 average, stride 2            28     128
    denseblock2    [1x1, 128 | 3x3, 32] x12              28     512
    transition2    1x1, 2x2 average, stride 2            14     256
    denseblock3    [1x1, 128 | 3x3, 32] x24              14    1024
    transition3    1x1, 2x2 average, stride 2             7     512
    denseblock4    [1x1, 128 | 3x3, 32] x16               7    1024
                   average, fully connected               1    1000

    a layer:    all maps of the block so far --> BN, ReLU, 1x1 to 128 --> BN, ReLU, 3x3 to 32 --> appended to them

7,978,856 parameters for 1000 classes, 6,953,856 without the last layer. Convolutions have no biases.

Stages: conv0 (after its normalisation and ReLU) and denseblock1 to denseblock4, with the strides 2, 4, 8, 16 and
32; the last one after the final normalisation and ReLU. Names of weights are torchvision's:
features.denseblock1.denselayer1.conv2.weight.

Differences from the paper
    * None in the layers: it is the paper's DenseNet-BC with growth 32 and compression 0.5. Transitions drop an odd
      last row or column.
    * All maps of a block are copied at each of its layers, which costs memory that a shared buffer would save.
    * `width` multiplies the growth and the stem's channels, `units` sets the layers of the blocks.
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.classifier import Classifier
from tinyseg.tape import Tensor

UNITS_121 = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """From all maps so far, `growth` new ones."""

    def __init__(self, in_channels: int, growth: int, *, rng: np.random.Generator):
        self.norm1 = nn.BatchNorm2d(in_channels, relu=True)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False, rng=rng)
        self.norm2 = nn.BatchNorm2d(4 * growth, relu=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False, rng=rng)

    def forward(self, x: Input) -> Tensor:
        x = self.conv1(self.norm1(x))
        return self.conv2(self.norm2(x))


class DenseBlock(nn.Module):
    """Layers that each append their maps to what they were given."""

    def __init__(self, in_channels: int, growth: int, units: int, *, rng: np.random.Generator):
        for index in range(units):
            setattr(self, f"denselayer{index + 1}", DenseLayer(in_channels + index * growth, growth, rng=rng))

    def forward(self, x: Input) -> Input:
        for _, layer in self.named_children():
            x = F.concat([x, layer(x)])
        return x


class Transition(nn.Module):
    """Half the channels, half the height and width."""

    def __init__(self, in_channels: int, out_channels: int, *, rng: np.random.Generator):
        self.norm = nn.BatchNorm2d(in_channels, relu=True)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False, rng=rng)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Input) -> Tensor:
        return self.pool(self.conv(self.norm(x)))


class DenseNet(Classifier):
    """See the top of this file.

    in_channels  of the image
    classes      of the classifier, or None for the trunk alone
    units        layers of the four blocks
    width        multiplies the growth and the channels of the stem
    rng          draws the initial weights
    """

    last_stage = "denseblock4"
    smallest_side = 29

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        units: Sequence[int] = UNITS_121,
        width: float = 1.0,
        rng: np.random.Generator,
    ):
        classifier.check_settings("DenseNet", in_channels=in_channels, classes=classes, width=width)
        if len(units) != 4 or min(units) < 1:
            raise ValueError(
                f"DenseNet: units must be 4 positive numbers of layers, one for each block; got {units}"
            )
        self.in_channels, self.classes, self.units = in_channels, classes, tuple(units)
        growth, channels = classifier.scaled(32, width), classifier.scaled(64, width)

        self.features: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False, rng=rng),
            "norm0": nn.BatchNorm2d(channels, relu=True),
            "pool0": nn.MaxPool2d(3, stride=2, padding=1),
        }
        self.stage_channels = {"conv0": channels}
        for block, count in enumerate(self.units, start=1):
            self.features[f"denseblock{block}"] = DenseBlock(channels, growth, count, rng=rng)
            channels += count * growth
            self.stage_channels[f"denseblock{block}"] = channels
            if block < 4:
                self.features[f"transition{block}"] = Transition(channels, channels // 2, rng=rng)
                channels //= 2
        self.features["norm5"] = nn.BatchNorm2d(channels, relu=True)
        self.stage_strides = dict(zip(self.stage_channels, (2, 4, 8, 16, 32), strict=True))
        self.classifier = (
            nn.Linear(channels, classes, init=classifier.LINEAR_UNIFORM, rng=rng) if classes is not None else None
        )

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        maps = {}
        for name, layer in self.features.items():
            x = maps[name] = layer(x)
        maps["conv0"], maps["denseblock4"] = maps["norm0"], maps["norm5"]
        return {name: maps[name] for name in self.stage_channels}

    def fully_connected(self) -> list[nn.Module]:
        return [self.classifier] if self.classifier is not None else []
