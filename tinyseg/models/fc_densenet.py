r"""FC-DenseNet, the "one hundred layers Tiramisu": a U of dense blocks, in which only new maps go up.

Jégou, Drozdzal, Vazquez, Romero & Bengio, "The one hundred layers Tiramisu: Fully convolutional DenseNets for
semantic segmentation", CVPR Workshops 2017, figure 1 and table 2. FC-DenseNet103 (growth rate 16) on a CamVid
image of 360 x 480 pixels, with the height and the channels m of each stack of maps:

    360  conv 3x3: 48 -> DB 4: 112 --------- skip ---------> [up 80, skip 112] -> DB 4: 256 -> 1x1: classes  360
             \ TD                                                     / TU (80 new maps)
             180  DB 5: 192 ---------------- skip -------> [112, 192] -> DB 5: 384   180
                  \ TD                                            / TU (112)
                  90  DB 7: 304 ------------ skip -----> [160, 304] -> DB 7: 576   90
                      \ TD                                      / TU (160)
                      45  DB 10: 464 ------- skip ---> [192, 464] -> DB 10: 816   45
                          \ TD                                / TU (192)
                          22  DB 12: 656 --- skip -> [240, 656] -> DB 12: 1088   22
                              \ TD                  / TU (240)
                              11  DB 15: 896 (the bottleneck)

    DB n   dense block: n layers BN - ReLU - 3x3 conv to `growth` maps - dropout 0.2. Each layer sees the block's
           input and the maps of all layers before it.
    TD     transition down: BN - ReLU - 1x1 conv - dropout 0.2 - 2x2 max pooling. The channels stay as many.
    TU     transition up: 3x3 transposed convolution, stride 2, of the block's n * growth *new* maps alone. On the
           way down a block's input is part of what it hands on; on the way up it is not, or the channels would
           explode. Only the classifier sees the whole stack of the last block.

The transposed convolution makes 2 n + 1 rows of n. That is what an odd skip has (pooling dropped its last row);
where the skip is even, the last row and column are cropped. So every image from 2^5 = 32 pixels on has an answer
for each of its pixels.

    name             layers in the blocks, down and bottleneck   growth   parameters for 11 classes
    fc_densenet56    4  4  4  4  4   4                           12       1,376,795 (1,397,963 with BN statistics)
    fc_densenet67    5  5  5  5  5   5                           16       3,463,243 (3,502,923)
    fc_densenet103   4  5  7 10 12  15                           16       9,322,091 (9,425,163)

The authors count the statistics as well: 3.5M and 9.4M. Their 1.5M for FC-DenseNet56 belongs to no reading of its
description.

Differences from the paper
    * None in structure from the authors' code, including the last block's whole stack before the classifier (the
      paper's text does not mention it, its table counts it) and a bias in every convolution.
    * statistics="batch", the default, does as the authors' code does: batch normalisation always uses the
      statistics of the images at hand, in validation and test too, so that a result depends (a little) on what
      else is in the batch. statistics="running" normalises with the running averages in evaluation, as is usual
      elsewhere. The averages are kept in both cases: the setting can be changed after training.
    * `layers`, `growth` and `first` can be made smaller, for small machines.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.network import SegmentationNetwork
from tinyseg.tape import Tensor

STATISTICS = ("batch", "running")
HE_UNIFORM = nn.init.he_uniform()


class Norm(nn.BatchNorm2d):
    """Batch normalisation and ReLU. With `batch_always`, also in evaluation with the statistics of the batch."""

    def __init__(self, channels: int, *, batch_always: bool):
        super().__init__(channels, eps=1e-4, momentum=0.1, relu=True)
        self.batch_always = batch_always

    def forward(self, x: Input) -> Tensor:
        if self.batch_always and not self.training:
            return F.batch_norm(x, self.weight, self.bias, eps=self.eps, relu=self.relu)[0]
        return super().forward(x)


class Layer(nn.Module):
    """BN - ReLU - convolution - dropout. (The 1x1 one is what a transition down does before it pools.)"""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        dropout: float,
        batch_always: bool,
        rng: np.random.Generator,
    ):
        self.norm = Norm(in_channels, batch_always=batch_always)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, init=HE_UNIFORM, rng=rng)
        self.dropout = nn.Dropout(dropout, rng=rng)

    def forward(self, x: Input) -> Input:
        return self.dropout(self.conv(self.norm(x)))


class DenseBlock(nn.Module):
    """`count` layers, each of which sees the block's input and the new maps of all layers before it."""

    def __init__(
        self,
        in_channels: int,
        count: int,
        growth: int,
        *,
        dropout: float,
        batch_always: bool,
        rng: np.random.Generator,
    ):
        self.layers = [
            Layer(in_channels + i * growth, growth, 3, dropout=dropout, batch_always=batch_always, rng=rng)
            for i in range(count)
        ]

    def forward(self, x: Input) -> list[Input]:
        """The new maps, `growth` channels from each layer."""
        new: list[Input] = []
        for layer in self.layers:
            new.append(layer(F.concat([x, *new])))
        return new


class TransitionDown(nn.Module):
    """A layer with a 1x1 convolution that keeps the number of channels, then 2x2 max pooling."""

    def __init__(self, channels: int, *, dropout: float, batch_always: bool, rng: np.random.Generator):
        self.layer = Layer(channels, channels, 1, dropout=dropout, batch_always=batch_always, rng=rng)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Input) -> Tensor:
        return self.pool(self.layer(x))


class TransitionUp(nn.Module):
    """A transposed convolution from n to 2 n + 1 rows, cropped to the skip connection, which is then appended."""

    def __init__(self, channels: int, *, rng: np.random.Generator):
        self.deconv = nn.ConvTranspose2d(channels, channels, 3, stride=2, init=HE_UNIFORM, rng=rng)

    def forward(self, x: Input, skip: Tensor) -> Tensor:
        up = self.deconv(x)
        if up.shape[1:3] != skip.shape[1:3]:
            up = F.crop(up, size=skip.shape[1:3])  # the centre of 2 n + 1 rows for 2 n: all but the last
        return F.concat([up, skip])


class FCDenseNet(SegmentationNetwork):
    """See the top of this file. Takes any image from 32 x 32 pixels on, or 2^n x 2^n for n + 1 `layers`.

    layers      in the dense blocks: those of the way down, then the bottleneck's. The way up mirrors the way down.
    growth      maps that each layer adds, k in the paper
    first       channels of the first convolution
    dropout     rate after each 3x3 and 1x1 convolution
    statistics  "batch" or "running": what batch normalisation uses in evaluation
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 11,
        *,
        layers: tuple[int, ...] = (4, 5, 7, 10, 12, 15),
        growth: int = 16,
        first: int = 48,
        dropout: float = 0.2,
        statistics: Literal["batch", "running"] = "batch",
        rng: np.random.Generator,
    ):
        _check(in_channels, classes, layers, growth, first, statistics)
        self.in_channels, self.classes = in_channels, classes
        self.smallest = 2 ** (len(layers) - 1)
        options = {"dropout": dropout, "batch_always": statistics == "batch", "rng": rng}
        *counts, bottleneck = layers

        self.first = nn.Conv2d(in_channels, first, 3, padding=1, init=HE_UNIFORM, rng=rng)
        channels, skips = first, []
        self.down_blocks, self.transitions_down = [], []
        for count in counts:
            self.down_blocks.append(DenseBlock(channels, count, growth, **options))
            channels += count * growth
            skips.append(channels)
            self.transitions_down.append(TransitionDown(channels, **options))

        self.bottleneck = DenseBlock(channels, bottleneck, growth, **options)
        new = bottleneck * growth
        channels += new  # where there is no way up, the classifier sees the whole stack

        self.transitions_up, self.up_blocks = [], []
        for count in reversed(counts):
            self.transitions_up.append(TransitionUp(new, rng=rng))
            channels = new + skips.pop()
            self.up_blocks.append(DenseBlock(channels, count, growth, **options))
            new = count * growth
            channels += new
        self.classifier = nn.Conv2d(channels, classes, 1, init=HE_UNIFORM, rng=rng)

    @property
    def statistics(self) -> str:
        """What batch normalisation uses in evaluation: "batch" or "running". It may be changed at any time."""
        return "batch" if self._norms()[0].batch_always else "running"

    @statistics.setter
    def statistics(self, value: str) -> None:
        _check_statistics(value)
        for norm in self._norms():
            norm.batch_always = value == "batch"

    def forward(self, x: Input) -> Tensor:
        height, width = x.shape[1:3]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"FCDenseNet: an image of {height} x {width} pixels is too small to be halved "
                f"{len(self.down_blocks)} times; it needs at least {self.smallest} x {self.smallest}. Use larger "
                "images, or fewer blocks (layers)"
            )
        x = self.first(x)
        skips = []
        for block, down in zip(self.down_blocks, self.transitions_down, strict=True):
            skips.append(F.concat([x, *block(x)]))
            x = down(skips[-1])

        new = self.bottleneck(x)
        for up, block in zip(self.transitions_up, self.up_blocks, strict=True):
            x = up(F.concat(new), skips.pop())
            new = block(x)
        return self.classifier(F.concat([x, *new]))

    def _norms(self) -> list[Norm]:
        return [module for module in self.modules() if isinstance(module, Norm)]


def _check(
    in_channels: int, classes: int, layers: Sequence[int], growth: int, first: int, statistics: str
) -> None:
    for name, value in (("in_channels", in_channels), ("classes", classes), ("growth", growth), ("first", first)):
        if value < 1:
            raise ValueError(f"FCDenseNet: {name} must be at least 1, got {value}")
    if not layers or min(layers) < 1:
        raise ValueError(
            "FCDenseNet: layers must hold the number of layers, 1 or more, of each block on the way down and of "
            f"the bottleneck, got {tuple(layers)}"
        )
    _check_statistics(statistics)


def _check_statistics(value: str) -> None:
    if value not in STATISTICS:
        raise ValueError(f"FCDenseNet: statistics must be one of {', '.join(STATISTICS)}, got {value!r}")
