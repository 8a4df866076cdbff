r"""ResNet: each unit adds a correction to what it was given.

He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, table 1 and figure 5. For an image
of 224 x 224 pixels:

    stage    output   ResNet-18      ResNet-34      ResNet-50                      ResNet-101
    conv1     112     7x7, 64, stride 2
               56     3x3 max pool, stride 2
    layer1     56     [3x3,  64] x2  [3x3,  64] x3  [1x1,  64 | 3x3,  64 | 1x1,  256] x3   the same
                      [3x3,  64]     [3x3,  64]
    layer2     28     [3x3, 128] x2  [3x3, 128] x4  [1x1, 128 | 3x3, 128 | 1x1,  512] x4   the same
                      [3x3, 128]     [3x3, 128]
    layer3     14     [3x3, 256] x2  [3x3, 256] x6  [1x1, 256 | 3x3, 256 | 1x1, 1024] x6   the same, x23
                      [3x3, 256]     [3x3, 256]
    layer4      7     [3x3, 512] x2  [3x3, 512] x3  [1x1, 512 | 3x3, 512 | 1x1, 2048] x3   the same
                      [3x3, 512]     [3x3, 512]
                1     average, fully connected, 1000 classes

    parameters        11,689,512     21,797,672     25,557,032                     44,549,160

    a unit:    x ---> convolutions, each with batch normalisation and, but for the last, ReLU ---> + ---> ReLU --->
                \                                                                                 /
                 ------- identity, or a 1x1 convolution where the shape changes ------------------

Three published forms differ in where a stage halves its resolution; `style` chooses:

    style          stride 2 sits in                              stem's pool   where
    "torchvision"  the first unit of a stage, its (first) 3x3    floor         torchvision, FastFCN; the default
    "caffe"        the first unit, its first convolution         ceil          the paper's own model, DeepLab v2
    "slim"         the last unit of the stage before, its (last) floor         TF-slim, DeepLab v3 and v3+
                   3x3; the shortcut takes every second pixel

The count of parameters is the same. The stem, too, has three forms: "7x7" is the paper's; "64-64-128" (PSPNet,
DeepLab v3, FastFCN) and "32-32-64" (ResNet-C) are three 3x3 convolutions with so many channels, the first with
stride 2.

Dilation. With `output_stride` 16 or 8, the last one or two of the stages that would halve the resolution keep it,
and the kernels behind the missing stride are dilated by 2 instead (by 4 behind two of them). The convolution that
lost its stride looks at its input as before, with the rate that this input has. Then the dilated network computes
what the strided one computes, at more places: every second (fourth) pixel of its maps is the strided network's.
The rates of the 3x3 convolutions of ResNet-50 for output stride 8:

                   layer2       layer3              layer4
    "torchvision"  1 1 1 1      1 2 2 2 2 2         2 4 4
    "caffe"        1 1 1 1      2 2 2 2 2 2         4 4 4       the 3x3 stands behind the stride
    "slim"         1 1 1 1      2 2 2 2 2 2         4 4 4

`first_rate="new"` gives "torchvision" the last rows' rates, as DeepLab ports to its weights do. `multi_grid`
multiplies the rates of the units of layer4 (DeepLab v3: (1, 2, 4)). `set_dilation` changes all this later, for
instance between training and evaluation.

Stages (channels of ResNet-50 and 101; 18 and 34 have a quarter of them in the layers), with output stride 32:

    name        channels  stride     in style "slim"
    conv1           64       2        2
    low_level      256       4        4     what DeepLab v3+ hands to its decoder
    layer1         256       4        8
    layer2         512       8       16
    layer3        1024      16       32
    layer4        2048      32       32

`low_level` is the output of layer1; in style "slim" it is the last map before the stride, and as in the released
DeepLab v3+ that is the correction of the last unit but one, before it is added.

Differences from the paper
    * Stride, stem and dilation as said above; the paper's own model is style="caffe".
    * Where a shape changes, the shortcut is a projection (the paper's option B). In style "slim" a unit that only
      changes the resolution takes every second pixel.
    * Initial weights are N(0, 2 / (kernel area * outputs)), as in torchvision. `zero_last` starts each unit as the
      identity: the scale of its last normalisation is 0.
    * TF-slim pads an even map at the bottom and right only; here padding is on both sides, as everywhere else.
    * `width` multiplies all channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.classifier import Classifier
from tinyseg.tape import Tensor

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STYLES = ("torchvision", "caffe", "slim")
STEMS = ("7x7", "64-64-128", "32-32-64")
OUTPUT_STRIDES = (32, 16, 8)
FIRST_RATES = ("previous", "new")

CONV_INIT = nn.init.he_normal(fan="out")


class Place(NamedTuple):
    """Where a unit stands: its stride, and the rates at which its input and its output are to be looked at."""

    stride: int
    rate: int  # of the convolutions up to the one with the stride
    rate_after: int  # of those behind it


class Unit(nn.Module):
    """A residual unit. Subclasses list its convolutions, and say which of them has the stride."""

    strided: int  # index of the convolution with the stride
    downsample: nn.Sequential | None

    def convolutions(self) -> list[nn.Conv2d]:
        raise NotImplementedError

    def correction(self, x: Input) -> Tensor:
        """What is added to the input."""
        raise NotImplementedError

    def forward(self, x: Input) -> Tensor:
        return self.add(x, self.correction(x))

    def add(self, x: Input, correction: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride > 1:
            x = F.max_pool2d(x, 1, stride=self.stride)  # every second pixel
        return F.relu(F.add(correction, x))

    def place(self, place: Place) -> None:
        """Set strides, dilations and paddings."""
        self.stride = place.stride
        for index, conv in enumerate(self.convolutions()):
            rate = place.rate if index <= self.strided else place.rate_after
            conv.options["stride"] = place.stride if index == self.strided else 1
            if conv.kernel != (1, 1):
                conv.options["dilation"] = conv.options["padding"] = rate
        for layer in self.downsample or ():
            if isinstance(layer, nn.Conv2d):
                layer.options["stride"] = place.stride


class BasicBlock(Unit):
    """Two 3x3 convolutions: ResNet-18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, style: str, rng: nn.init.Random):
        self.conv1 = conv3x3(in_channels, channels, rng)
        self.bn1 = nn.BatchNorm2d(channels, relu=True)
        self.conv2 = conv3x3(channels, channels, rng)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels, rng) if in_channels != channels else None
        self.strided = 1 if style == "slim" else 0

    def convolutions(self) -> list[nn.Conv2d]:
        return [self.conv1, self.conv2]

    def correction(self, x: Input) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))


class Bottleneck(Unit):
    """A 1x1 convolution to fewer channels, a 3x3, and a 1x1 to four times as many: ResNet-50 and 101."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, style: str, rng: nn.init.Random):
        out_channels = self.expansion * channels
        self.conv1 = conv1x1(in_channels, channels, rng)
        self.bn1 = nn.BatchNorm2d(channels, relu=True)
        self.conv2 = conv3x3(channels, channels, rng)
        self.bn2 = nn.BatchNorm2d(channels, relu=True)
        self.conv3 = conv1x1(channels, out_channels, rng)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = projection(in_channels, out_channels, rng) if in_channels != out_channels else None
        self.strided = 0 if style == "caffe" else 1

    def convolutions(self) -> list[nn.Conv2d]:
        return [self.conv1, self.conv2, self.conv3]

    def correction(self, x: Input) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        return self.bn3(self.conv3(x))


def conv3x3(in_channels: int, out_channels: int, rng: nn.init.Random, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False, init=CONV_INIT, rng=rng)


def conv1x1(in_channels: int, out_channels: int, rng: nn.init.Random) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False, init=CONV_INIT, rng=rng)


def projection(in_channels: int, out_channels: int, rng: nn.init.Random) -> nn.Sequential:
    return nn.Sequential(conv1x1(in_channels, out_channels, rng), nn.BatchNorm2d(out_channels))


class ResNet(Classifier):
    """See the top of this file.

    in_channels    of the image
    classes        of the classifier, or None for the trunk alone
    depth          18, 34, 50 or 101
    style          "torchvision", "caffe" or "slim": where the strides are
    stem           "7x7", "64-64-128" or "32-32-64"
    output_stride  of layer4: 32, 16 or 8
    first_rate     "previous", or "new": dilate also the convolution that lost its stride
    multi_grid     factors of the rates of layer4's units
    width          multiplies all channels
    zero_last      start with units that are the identity
    rng            draws the initial weights
    """

    heads = ("fc",)
    last_stage = "layer4"

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        depth: int = 50,
        style: str = "torchvision",
        stem: str = "7x7",
        output_stride: int = 32,
        first_rate: str = "previous",
        multi_grid: Sequence[int] | None = None,
        width: float = 1.0,
        zero_last: bool = False,
        rng: np.random.Generator,
    ):
        classifier.check_settings("ResNet", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("ResNet", "depth", depth, tuple(UNITS))
        classifier.check_choice("ResNet", "style", style, STYLES)
        classifier.check_choice("ResNet", "stem", stem, STEMS)
        self.in_channels, self.classes = in_channels, classes
        self.depth, self.style, self.stem = depth, style, stem
        block = BasicBlock if depth < 50 else Bottleneck
        base = classifier.scaled(64, width)

        if stem == "7x7":
            channels = base
            self.conv1 = nn.Conv2d(in_channels, base, 7, stride=2, padding=3, bias=False, init=CONV_INIT, rng=rng)
        else:
            first, second, channels = (classifier.scaled(int(number), width) for number in stem.split("-"))
            self.conv1 = nn.Sequential(
                conv3x3(in_channels, first, rng, stride=2),
                nn.BatchNorm2d(first),
                nn.ReLU(),
                conv3x3(first, second, rng),
                nn.BatchNorm2d(second),
                nn.ReLU(),
                conv3x3(second, channels, rng),
            )
        self.bn1 = nn.BatchNorm2d(channels, relu=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=style == "caffe")

        self.stage_channels = {"conv1": channels}
        layers = []
        for stage, units in enumerate(UNITS[depth]):
            inner = base * 2**stage
            layer = []
            for _ in range(units):
                layer.append(block(channels, inner, style=style, rng=rng))
                channels = block.expansion * inner
            layers.append(nn.Sequential(*layer))
            if stage == 0:
                self.stage_channels["low_level"] = channels
            self.stage_channels[f"layer{stage + 1}"] = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = (
            nn.Linear(channels, classes, init=classifier.LINEAR_UNIFORM, rng=rng) if classes is not None else None
        )
        if zero_last:
            for layer in layers:
                for unit in layer:
                    last = unit.bn2 if block is BasicBlock else unit.bn3
                    last.weight.data = np.zeros_like(last.weight.data)
        self.set_dilation(output_stride, multi_grid=multi_grid, first_rate=first_rate)

    def set_dilation(
        self, output_stride: int, *, multi_grid: Sequence[int] | None = None, first_rate: str = "previous"
    ) -> None:
        """Trade strides for dilations, or back. Weights stay as they are, so a trained network may be changed.

        `multi_grid` None stands for factors of 1.
        """
        classifier.check_choice("ResNet", "output_stride", output_stride, OUTPUT_STRIDES)
        classifier.check_choice("ResNet", "first_rate", first_rate, FIRST_RATES)
        units = UNITS[self.depth]
        factors = (1,) * units[3] if multi_grid is None else tuple(multi_grid)
        if len(factors) != units[3] or min(factors) < 1:
            raise ValueError(
                f"ResNet: multi_grid needs {units[3]} positive factors, one for each unit of layer4 of a "
                f"ResNet-{self.depth}; got {multi_grid}"
            )
        self.output_stride, self.multi_grid, self.first_rate = output_stride, factors, first_rate

        self.stage_strides = {"conv1": 2, "low_level": 4}
        stride, rate = 4, 1  # of the map that a unit is given
        for stage, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for index, unit in enumerate(layer):
                step, before = 1, rate
                if self._halves(stage, index):
                    if stride < output_stride:
                        step = 2
                        stride *= 2
                    else:
                        rate *= 2
                        before = rate if first_rate == "new" else before
                factor = factors[index] if stage == 3 else 1
                unit.place(Place(step, factor * before, factor * rate))
            self.stage_strides[f"layer{stage + 1}"] = stride

    def _halves(self, stage: int, index: int) -> bool:
        """Whether this unit halves the resolution in the network without dilation."""
        if self.style == "slim":
            return stage < 3 and index == UNITS[self.depth][stage] - 1
        return stage > 0 and index == 0

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        maps = {}
        x = maps["conv1"] = self.bn1(self.conv1(x))
        x = self.maxpool(x)
        last_but_one = len(self.layer1) - 2
        for index, unit in enumerate(self.layer1):
            correction = unit.correction(x)
            x = unit.add(x, correction)
            if index == last_but_one and self.style == "slim":
                maps["low_level"] = correction
        if self.style != "slim":
            maps["low_level"] = x
        maps["layer1"] = x
        x = maps["layer2"] = self.layer2(x)
        x = maps["layer3"] = self.layer3(x)
        maps["layer4"] = self.layer4(x)
        return maps

    def fully_connected(self) -> list[nn.Module]:
        return [self.fc] if self.fc is not None else []
