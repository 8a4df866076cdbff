r"""WideResNet-38: fewer and wider residual units; the regular stream of Gated-SCNN.

Wu, Shen & van den Hengel, "Wider or deeper: Revisiting the ResNet model for visual recognition", Pattern
Recognition 2019, table 1 (model A2), as dilated in Takikawa, Acuna, Jampani & Fidler, "Gated-SCNN: Gated shape
CNNs for semantic segmentation", ICCV 2019:

    stage   units                                 channels   stride, rate of the 3x3 for output stride
                                                               32         16         8       parameters
    mod1    3x3, no normalisation                    64       1          1          1            1,728
            3x3 max pool, stride 2
    mod2    [3x3, 128 | 3x3, 128] x3                128       2          2          2          820,608
            3x3 max pool, stride 2
    mod3    [3x3, 256 | 3x3, 256] x3                256       4          4          4        3,279,616
    mod4    [3x3, 512 | 3x3, 512] x6                512       8          8          8       27,274,752
    mod5    [3x3, 512 | 3x3, 1024] x3              1024      16         16          8, 2    26,484,736
    mod6    [1x1, 512 | 3x3, 1024 | 1x1, 2048]     2048      32         16, 2       8, 4     9,442,304
    mod7    [1x1, 1024 | 3x3, 2048 | 1x1, 4096]    4096      32         16, 2       8, 4    37,758,976
            BN, ReLU, average, fully connected                      together, mod1 to mod7    105,062,720

    a unit:    x --> BN, ReLU ---> convolutions, with BN and ReLU between them ---> + --->
                 \         \                                                       /
                  \         ----- 1x1 convolution where the shape changes --------/
                   ------------------ the identity elsewhere --------------------/

The normalisation comes first in a unit, so that the sum of a unit goes on as it is. No ReLU follows the last one:
a classifier normalises once more, which is its stage "last".

Stages: mod1 to mod7, and "last" where there is a classifier. The network is usually dilated: `output_stride` is 8
by default, and may be changed later with `set_dilation`.

Differences from the paper
    * All 3x3 convolutions of a dilated module take its rate, as in the released Gated-SCNN.
    * Whole channels are dropped before the last convolution of mod6 and mod7, with the rates 0.3 and 0.5.
    * `width` multiplies all channels.
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.classifier import Classifier
from tinyseg.tape import Tensor

UNITS = (  # of mod2 to mod7: how many, and the channels of one's convolutions
    (3, (128, 128)),
    (3, (256, 256)),
    (6, (512, 512)),
    (3, (512, 1024)),
    (1, (512, 1024, 2048)),
    (1, (1024, 2048, 4096)),
)
DROPOUT = {6: 0.3, 7: 0.5}
OUTPUT_STRIDES = (32, 16, 8)


class Unit(nn.Module):
    """A residual unit that normalises first: two 3x3 convolutions, or 1x1, 3x3 and 1x1."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], *, stride: int, dropout: float, rng: np.random.Generator
    ):
        inputs, kernels = (in_channels, *channels[:-1]), (3, 3) if len(channels) == 2 else (1, 3, 1)
        self.norms = [nn.BatchNorm2d(given, relu=True) for given in inputs]
        self.convs = [
            nn.Conv2d(given, made, kernel, padding=kernel // 2, bias=False, rng=rng)
            for given, made, kernel in zip(inputs, channels, kernels, strict=True)
        ]
        self.dropout = nn.Dropout(dropout, channels=True, rng=rng) if dropout else nn.Identity()
        self.projection = None
        if in_channels != channels[-1] or stride > 1:
            self.projection = nn.Conv2d(in_channels, channels[-1], 1, bias=False, rng=rng)

    def forward(self, x: Input) -> Tensor:
        normalised = self.norms[0](x)
        shortcut = x if self.projection is None else self.projection(normalised)
        y = self.convs[0](normalised)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = norm(y)
            y = conv(self.dropout(y) if conv is self.convs[-1] else y)
        return F.add(y, shortcut)

    def place(self, stride: int, rate: int) -> None:
        """Set the stride, which the first convolution has, and the rate."""
        for index, conv in enumerate(self.convs):
            conv.options["stride"] = stride if index == 0 else 1
            if conv.kernel != (1, 1):
                conv.options["dilation"] = conv.options["padding"] = rate
        if self.projection is not None:
            self.projection.options["stride"] = stride


class WideResNet38(Classifier):
    """See the top of this file.

    in_channels    of the image
    classes        of the classifier, or None for the trunk alone
    output_stride  of mod7: 32, 16 or 8
    width          multiplies all channels
    rng            draws the initial weights
    """

    heads = ("fc",)

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        output_stride: int = 8,
        width: float = 1.0,
        rng: np.random.Generator,
    ):
        classifier.check_settings("WideResNet38", in_channels=in_channels, classes=classes, width=width)
        self.in_channels, self.classes = in_channels, classes
        channels = classifier.scaled(64, width)
        self.mod1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False, rng=rng)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage_channels = {"mod1": channels}
        for module, (count, numbers) in enumerate(UNITS, start=2):
            units, inner = [], [classifier.scaled(number, width) for number in numbers]
            for index in range(count):
                stride = 2 if index == 0 and 4 <= module <= 6 else 1
                units.append(Unit(channels, inner, stride=stride, dropout=DROPOUT.get(module, 0.0), rng=rng))
                channels = inner[-1]
            setattr(self, f"mod{module}", nn.Sequential(*units))
            self.stage_channels[f"mod{module}"] = channels
        self.last_stage = "mod7"
        self.norm_last = self.fc = None
        if classes is not None:
            self.last_stage = "last"
            self.stage_channels["last"] = channels
            self.norm_last = nn.BatchNorm2d(channels, relu=True)
            self.fc = nn.Linear(channels, classes, init=classifier.LINEAR_UNIFORM, rng=rng)
        self.set_dilation(output_stride)

    def set_dilation(self, output_stride: int) -> None:
        """Trade strides for dilations, or back. Weights stay as they are, so a trained network may be changed."""
        classifier.check_choice("WideResNet38", "output_stride", output_stride, OUTPUT_STRIDES)
        self.output_stride = output_stride
        self.stage_strides = {"mod1": 1, "mod2": 2, "mod3": 4}
        stride, rate = 4, 1
        for module in range(4, 8):
            step = 1
            if module < 7 and stride < output_stride:
                step = 2
            elif module < 7:
                rate *= 2
            for index, unit in enumerate(getattr(self, f"mod{module}")):
                unit.place(step if index == 0 else 1, rate)
            stride *= step
            self.stage_strides[f"mod{module}"] = stride
        if self.classes is not None:
            self.stage_strides["last"] = stride

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        maps = {}
        x = maps["mod1"] = self.mod1(x)
        for module in range(2, 8):
            x = self.pool(x) if module < 4 else x
            x = maps[f"mod{module}"] = getattr(self, f"mod{module}")(x)
        if self.norm_last is not None:
            maps["last"] = self.norm_last(x)
        return maps

    def fully_connected(self) -> list[nn.Module]:
        return [self.fc] if self.fc is not None else []
