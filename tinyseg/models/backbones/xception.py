r"""Xception as DeepLab v3+ changed it: separable convolutions all the way, strides instead of poolings.

Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
segmentation", ECCV 2018, figure 4; after Chollet, "Xception: Deep learning with depthwise separable convolutions",
CVPR 2017. Xception-65, for an image of 513 x 513 pixels:

                                                                          rate of the 3x3, size
    flow      block                 channels           stride  shortcut   stride 32   stride 16   stride 8
    entry     conv1_1   3x3           32                 2                 1   257     1   257     1   257
              conv1_2   3x3           64                 1                 1   257     1   257     1   257
              entry.0   3 sep        128  128  128       2     1x1         1   129     1   129     1   129
              entry.1   3 sep        256  256  256       2     1x1         1    65     1    65     1    65
              entry.2   3 sep        728  728  728       2     1x1         1    33     1    33     1    65
    middle    middle.k  3 sep, x16   728  728  728       1     identity    1    33     1    33     2    65
    exit      exit.0    3 sep        728 1024 1024       2     1x1         1    17     1    33     2    65
              exit.1    3 sep'      1536 1536 2048       1     none        1    17     2    33     4    65
              average, dropout, fully connected

    sep     ReLU --> 3x3 in each channel, BN --> 1x1, BN              a stride is that of the third sep of a block
    sep'    3x3 in each channel, BN, ReLU --> 1x1, BN, ReLU

    depth                                        parameters for 1000 classes    trunk
    41      8 middle blocks                               26,969,560         24,920,560
    65      16 middle blocks                              39,916,312         37,867,312
    71      65, and entry blocks of 128 (stride 2), 256 (1), 256 (2), 728 (1), 728 (2)
                                                          42,338,736         40,289,736

`set_dilation` trades the last strides for dilations: the convolution that lost its stride keeps the rate of its
input, those behind it double it. `multi_grid` multiplies the rates of the three convolutions of exit.1.

Stages, with output stride 32:

    name        channels  stride                     of Xception-71: channels  stride
    conv1           64       2                                           64       2
    entry.0        128       4                                          128       4
    low_level      256       4    the second sep of the block to        256       4
    entry.1        256       8    stride 8: what the decoder reads      256       4
    entry.2        728      16                                          256       8
    entry.3, .4                                                         728       8, 16
    middle         728      16                                          728      16
    exit          2048      32                                         2048      32

Differences from the paper
    * The paper says that normalisation and ReLU follow each 3x3 in each channel; the released network, whose
      weights exist, has the normalisation alone there, but for exit.1. So has this one; `depthwise_relu=True` is
      the paper.
    * Initial weights are N(0, 2 / inputs) instead of a truncated N(0, 0.09^2).
    * Moments of the normalisation move with momentum 0.1 instead of 0.0003; eps is the released 1e-3.
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

MIDDLE_BLOCKS = {41: 8, 65: 16, 71: 16}
ENTRY_BLOCKS = ((128, 2), (256, 2), (728, 2))  # channels, stride
ENTRY_BLOCKS_71 = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
OUTPUT_STRIDES = (32, 16, 8)
EPS = 1e-3


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 of all channels, each normalised.

    relu  "before" both (sep in the figure), "between" too (the paper's), or "after" each (sep')
    """

    def __init__(self, in_channels: int, out_channels: int, *, relu: str, rng: np.random.Generator):
        self.relu_before = relu != "after"
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False, rng=rng)
        self.depthwise_bn = nn.BatchNorm2d(in_channels, eps=EPS, relu=relu != "before")
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False, rng=rng)
        self.pointwise_bn = nn.BatchNorm2d(out_channels, eps=EPS, relu=relu == "after")

    def forward(self, x: Input) -> Tensor:
        x = F.relu(x) if self.relu_before else x
        x = self.depthwise_bn(self.depthwise(x))
        return self.pointwise_bn(self.pointwise(x))

    def place(self, stride: int, rate: int) -> None:
        self.depthwise.options |= {"stride": stride, "dilation": rate, "padding": rate}


class Block(nn.Module):
    """Three separable convolutions beside a shortcut: "conv", "identity" or "none"."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        shortcut: str,
        stride: int = 1,
        relu: str = "before",
        rng: np.random.Generator,
    ):
        inputs = (in_channels, *channels[:-1])
        self.separable = [
            SeparableConv(given, made, relu=relu, rng=rng) for given, made in zip(inputs, channels, strict=True)
        ]
        self.projection = self.projection_bn = None
        if shortcut == "conv":
            self.projection = nn.Conv2d(in_channels, channels[-1], 1, bias=False, rng=rng)
            self.projection_bn = nn.BatchNorm2d(channels[-1], eps=EPS)
        self.shortcut, self.stride = shortcut, stride

    def forward(self, x: Input) -> Tensor:
        return self.with_inner(x)[0]

    def with_inner(self, x: Input) -> tuple[Tensor, Tensor]:
        """The block's output, and that of its second separable convolution."""
        inner = self.separable[1](self.separable[0](x))
        y = self.separable[2](inner)
        if self.projection is not None and self.projection_bn is not None:
            y = F.add(y, self.projection_bn(self.projection(x)))
        elif self.shortcut == "identity":
            y = F.add(y, x)
        return y, inner

    def place(self, stride: int, rate: int, factors: Sequence[int] = (1, 1, 1)) -> None:
        for index, (conv, factor) in enumerate(zip(self.separable, factors, strict=True)):
            conv.place(stride if index == 2 else 1, factor * rate)
        if self.projection is not None:
            self.projection.options["stride"] = stride


class Xception(Classifier):
    """See the top of this file.

    in_channels     of the image
    classes         of the classifier, or None for the trunk alone
    depth           41, 65 or 71
    output_stride   of the last map: 32, 16 or 8
    multi_grid      factors of the rates of the last block's three convolutions
    depthwise_relu  a ReLU behind each 3x3, too
    width           multiplies all channels
    dropout         rate before the last layer
    rng             draws the initial weights
    """

    heads = ("fc", "dropout")
    last_stage = "exit"

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        depth: int = 65,
        output_stride: int = 32,
        multi_grid: Sequence[int] | None = None,
        depthwise_relu: bool = False,
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        classifier.check_settings("Xception", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("Xception", "depth", depth, tuple(MIDDLE_BLOCKS))
        self.in_channels, self.classes, self.depth = in_channels, classes, depth
        relu = "between" if depthwise_relu else "before"

        def scaled(*channels: int) -> list[int]:
            return [classifier.scaled(number, width) for number in channels]

        first, channels = scaled(32, 64)
        self.conv1_1 = nn.Conv2d(in_channels, first, 3, stride=2, padding=1, bias=False, rng=rng)
        self.bn1_1 = nn.BatchNorm2d(first, eps=EPS, relu=True)
        self.conv1_2 = nn.Conv2d(first, channels, 3, padding=1, bias=False, rng=rng)
        self.bn1_2 = nn.BatchNorm2d(channels, eps=EPS, relu=True)
        self.stage_channels = {"conv1": channels}

        entry = ENTRY_BLOCKS_71 if depth == 71 else ENTRY_BLOCKS
        self.low_level = 2 if depth == 71 else 1  # the block that goes from stride 4 to 8
        self.entry = []
        for index, (number, stride) in enumerate(entry):
            inner = scaled(number, number, number)
            self.entry.append(Block(channels, inner, shortcut="conv", stride=stride, relu=relu, rng=rng))
            channels = inner[-1]
            if index == self.low_level:
                self.stage_channels["low_level"] = channels
            self.stage_channels[f"entry.{index}"] = channels
        self.middle = [
            Block(channels, scaled(728, 728, 728), shortcut="identity", relu=relu, rng=rng)
            for _ in range(MIDDLE_BLOCKS[depth])
        ]
        inner, last = scaled(728, 1024, 1024), scaled(1536, 1536, 2048)
        self.exit = [
            Block(channels, inner, shortcut="conv", stride=2, relu=relu, rng=rng),
            Block(inner[-1], last, shortcut="none", relu="after", rng=rng),
        ]
        self.stage_channels |= {"middle": channels, "exit": last[-1]}
        self.fc = self.dropout = None
        if classes is not None:
            self.dropout = nn.Dropout(dropout, rng=rng)
            self.fc = nn.Linear(last[-1], classes, init=classifier.LINEAR_UNIFORM, rng=rng)
        self.set_dilation(output_stride, multi_grid=multi_grid)

    def set_dilation(self, output_stride: int, *, multi_grid: Sequence[int] | None = None) -> None:
        """Trade strides for dilations, or back. Weights stay as they are, so a trained network may be changed."""
        classifier.check_choice("Xception", "output_stride", output_stride, OUTPUT_STRIDES)
        factors = (1, 1, 1) if multi_grid is None else tuple(multi_grid)
        if len(factors) != 3 or min(factors) < 1:
            raise ValueError(f"Xception: multi_grid needs 3 positive factors, got {multi_grid}")
        self.output_stride, self.multi_grid = output_stride, factors

        strides = {"conv1": 2, "low_level": 4}
        stride, rate = 2, 1
        for name, block in self._blocks():
            step, next_rate = block.stride, rate
            if stride * step > output_stride:
                step, next_rate = 1, rate * block.stride
            block.place(step, rate, factors if block is self.exit[-1] else (1, 1, 1))
            stride, rate = stride * step, next_rate
            strides[name] = stride
        self.stage_strides = {name: strides[name] for name in self.stage_channels}

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        maps = {}
        x = self.bn1_1(self.conv1_1(x))
        x = maps["conv1"] = self.bn1_2(self.conv1_2(x))
        for name, block in self._blocks():
            x, inner = block.with_inner(x)
            maps[name] = x
            if block is self.entry[self.low_level]:
                maps["low_level"] = inner
        return {name: maps[name] for name in self.stage_channels}

    def fully_connected(self) -> list[nn.Module]:
        return [layer for layer in (self.dropout, self.fc) if layer is not None]

    def _blocks(self) -> list[tuple[str, Block]]:
        """All blocks in their order, with the name of the stage that they belong to."""
        return [
            *((f"entry.{index}", block) for index, block in enumerate(self.entry)),
            *(("middle", block) for block in self.middle),
            *(("exit", block) for block in self.exit),
        ]
