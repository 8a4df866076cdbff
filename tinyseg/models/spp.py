r"""Spatial pyramid pooling: a vector of fixed length from a map of any size, and a classifier built on it.

He, Zhang, Ren & Sun, "Spatial pyramid pooling in deep convolutional networks for visual recognition", ECCV 2014
(arXiv 1406.4729), figures 1 to 3. A map of any height and width, k channels, is pooled to its maxima in n x n bins
for each level n of the pyramid, and all bins are joined; for the levels 6, 3, 2, 1

    map h x w x k --+--> 6 x 6 bins: 36 k --.
                    +--> 3 x 3 bins:  9 k --+--> 50 k numbers --> fc6 4096 --> fc7 4096 --> fc8 classes
                    +--> 2 x 2 bins:  4 k --+
                    '--> 1 x 1 bin:     k --'

The classifier is that of the paper's first experiments, ZF-5 (Zeiler & Fergus, "Visualizing and understanding
convolutional networks", ECCV 2014, without its last pooling). In its sizes for images of 224 and of 180 pixels, on
which the paper trains the same weights in turns:

    layer                       channels    224    180
    conv1   7x7, stride 2         96        109     87     ReLU
    pool1   3x3, stride 2         96         55     44     padding 1; then local response normalisation
    conv2   5x5, stride 2        256         26     20     ReLU
    pool2   3x3, stride 2        256         13     10     padding 1; then local response normalisation
    conv3   3x3                  384         13     10     ReLU
    conv4   3x3                  384         13     10     ReLU
    conv5   3x3                  256         13     10     ReLU
    SPP     50 bins           12,800      (30 bins, 7,680 numbers, with the levels 4, 3, 2, 1)
    fc6, fc7, fc8                                          77,037,672 parameters for 1000 classes

Bins. bins="windows" is the paper's rule for a map of side a: a window of ceil(a / n), moved by floor(a / n). On
13 x 13 that is (5, 4), (7, 6) and (13, 13) for n = 3, 2, 1, as in the paper's figure 3. It does not give n bins
for every a (9 for a = 10 and n = 6). bins="adaptive", the default, does: bin i covers the rows from
floor(i a / n) to ceil((i + 1) a / n) - 1, which are the very same windows in those three cases.

ASPP, the "atrous spatial pyramid pooling" of DeepLab, is something else: it keeps the map's resolution, and its
pyramid is one of dilations.

Differences from the paper
    * "adaptive" bins, see above.
    * The padding of ZF-5's first layers is not in the paper. The one here gives the maps of 13 x 13 and 10 x 10
      that it reports for 224 and 180.
    * Weights start as N(0, 2 / inputs).
    * `width` multiplies all channels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones.classifier import LINEAR_UNIFORM, Classifier, check_settings, scaled
from tinyseg.tape import Tensor

BINS = ("adaptive", "windows")


class SpatialPyramidPooling(nn.Module):
    """(N, h, w, C) -> (N, length), length = C * sum of n^2 over the levels, whatever h and w are.

    levels  n for each level of the pyramid
    bins    "adaptive" or "windows", see the top of this file
    """

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1), *, bins: Literal["adaptive", "windows"] = "adaptive"):
        if not levels or min(levels) < 1:
            raise ValueError(
                "SpatialPyramidPooling: levels must hold the number of bins along a side, 1 or more, of each "
                f"level of the pyramid, got {tuple(levels)}"
            )
        if bins not in BINS:
            raise ValueError(f"SpatialPyramidPooling: bins must be one of {', '.join(BINS)}, got {bins!r}")
        self.levels, self.bins = tuple(levels), bins

    def length(self, channels: int) -> int:
        """Of the vector, for a map of so many channels."""
        return channels * sum(n * n for n in self.levels)

    def forward(self, x: Input) -> Tensor:
        batch = x.shape[0]
        return F.concat([F.reshape(self._level(x, n), (batch, -1)) for n in self.levels])

    def _level(self, x: Input, n: int) -> Tensor:
        """The maxima in n x n bins."""
        if self.bins == "adaptive":
            return F.adaptive_max_pool2d(x, n)
        height, width = x.shape[1:3]
        window = (math.ceil(height / n), math.ceil(width / n))
        stride = (height // n, width // n)
        counts = [
            (side - extent) // step + 1 if step else 0
            for side, extent, step in zip((height, width), window, stride, strict=True)
        ]
        if counts != [n, n]:
            raise ValueError(
                f"SpatialPyramidPooling: on a map of {height} x {width} windows of {window[0]} x {window[1]} "
                f"moved by {stride[0]} and {stride[1]} give {counts[0]} x {counts[1]} bins instead of {n} x {n}; "
                'use bins="adaptive"'
            )
        return F.max_pool2d(x, window, stride=stride)

    def describe(self) -> str:
        return f"levels {', '.join(map(str, self.levels))}" + ("" if self.bins == "adaptive" else f", {self.bins}")


class SPPNet(Classifier):
    """The paper's classifier on ZF-5, for images of any size from 23 x 23. See the top of this file.

    forward:  (N, H, W, in_channels) -> logits (N, classes)

    in_channels  of the image
    classes      that it tells apart, or None for the trunk alone
    levels       of the pyramid
    bins         "adaptive" or "windows"
    width        multiplies all channels
    dropout      rate behind fc6 and fc7
    rng          draws the initial weights
    """

    heads = ("classifier",)
    last_stage = "conv5"
    smallest_side = 23

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        levels: tuple[int, ...] = (6, 3, 2, 1),
        bins: Literal["adaptive", "windows"] = "adaptive",
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        check_settings("SPPNet", in_channels=in_channels, classes=classes, width=width)
        self.in_channels, self.classes = in_channels, classes
        c1, c2, c3, c4, c5 = (scaled(channels, width) for channels in (96, 256, 384, 384, 256))
        self.conv1 = nn.Conv2d(in_channels, c1, 7, stride=2, rng=rng)
        self.conv2 = nn.Conv2d(c1, c2, 5, stride=2, rng=rng)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1, rng=rng)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, rng=rng)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, rng=rng)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm = nn.LocalResponseNorm(5)
        self.stage_channels = {"conv1": c1, "conv2": c2, "conv5": c5}
        self.stage_strides = {"conv1": 2, "conv2": 8, "conv5": 16}

        self.pyramid = SpatialPyramidPooling(levels, bins=bins)
        self.classifier = None
        if classes is not None:
            hidden = scaled(4096, width)
            self.classifier = nn.Sequential(
                nn.Linear(self.pyramid.length(c5), hidden, rng=rng),
                nn.ReLU(),
                nn.Dropout(dropout, rng=rng),
                nn.Linear(hidden, hidden, rng=rng),
                nn.ReLU(),
                nn.Dropout(dropout, rng=rng),
                nn.Linear(hidden, classes, init=LINEAR_UNIFORM, rng=rng),
            )

    def stages(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        maps = {}
        maps["conv1"] = F.relu(self.conv1(x))
        maps["conv2"] = F.relu(self.conv2(self.norm(self.pool(maps["conv1"]))))
        y = self.norm(self.pool(maps["conv2"]))
        for conv in (self.conv3, self.conv4, self.conv5):
            y = F.relu(conv(y))
        maps["conv5"] = y
        return maps

    def classify(self, x: Tensor) -> Tensor:
        vector = self.pyramid(x)
        for layer in self.fully_connected():
            vector = layer(vector)
        return vector
