r"""What the DeepLab networks share: scores on a coarse grid, enlarged to the image.

The grid. All strides and paddings of these networks are symmetric, so that pixel i of a map with stride s stands
for pixel s i of the image, and a map of k + 1 pixels reaches from corner to corner of an image of s k + 1:

    image    0 . . . . . . . 8 . . . . . . . 16      17 pixels
    map      0               1                2       3 pixels, stride 8

That is why the papers' crops are 321 = 8 * 40 + 1 and 513 = 16 * 32 + 1, and why the scores are enlarged with
align_corners. An image of another size gets zeros (after normalisation, the mean pixel) at its bottom and right,
up to the next such size, as the released code pads a crop that is too small; what they were answered is cut off
again.

Training on shrunk labels, as DeepLab v1 and v2 did, with their setting `shrunk_labels`: the scores belong to every
s-th pixel, and only its label counts. v3 found the labels of all pixels to be worth 1.2 points of mean IoU.

Learning rates of the papers: biases twice that of weights; in DeepLab v1 and v2 the last layer, which does not
come from the trained classifier, ten times that of the others (`paper_rates`, `head_parts`).
"""

from typing import Any

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.backend import Array
from tinyseg.functional import Input
from tinyseg.models.network import LearningRates, PixelLoss, SegmentationNetwork
from tinyseg.tape import Tensor

CLASSIFIER_INIT = nn.init.normal(0.01)


class DeepLab(SegmentationNetwork):
    """The base class. Takes any image from 1 x 1 pixel on.

    forward:  (N, H, W, in_channels) -> logits (N, H, W, classes)
    scores:   (N, H, W, in_channels) -> (N, h, w, classes), before they are enlarged

    output_stride  pixels of the image from one pixel of the trunk's last map to the next
    shrunk_labels  train on the scores, each with the label of one pixel
    """

    output_stride: int
    shrunk_labels: bool = False
    align_corners = True
    paper_rates = LearningRates(bias=2.0)

    def scores(self, x: Input) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Input) -> Tensor:
        return self.enlarged(self.scores(self.on_grid(x)), x)

    def on_grid(self, x: Input) -> Input:
        """Images with zeros at the bottom and on the right, so that the grid ends with their last pixels."""
        bottom, right = self._missing(x)
        return F.pad(x, (0, bottom, 0, right)) if bottom or right else x

    def enlarged(self, scores: Tensor, x: Input) -> Tensor:
        """The scores of images `on_grid`, for each pixel of x."""
        bottom, right = self._missing(x)
        logits = F.resize(scores, (x.shape[1] + bottom, x.shape[2] + right), align_corners=True)
        return F.crop(logits, (0, bottom, 0, right)) if bottom or right else logits

    def _missing(self, x: Input) -> tuple[int, int]:
        return -(x.shape[1] - 1) % self.output_stride, -(x.shape[2] - 1) % self.output_stride

    def outputs(self, x: Input) -> Any:
        """The logits, or with shrunk labels the scores."""
        return self.answers(self.scores(self.on_grid(x)), x) if self.shrunk_labels else self(x)

    def answers(self, scores: Tensor, x: Input) -> Tensor:
        """What scores of images `on_grid` say of x: for each pixel, or with shrunk labels for each that counts."""
        if not self.shrunk_labels:
            return self.enlarged(scores, x)
        size = (-(-x.shape[1] // self.output_stride), -(-x.shape[2] // self.output_stride))
        return scores if scores.shape[1:3] == size else F.crop(scores, size=size, offset=(0, 0))

    def losses(
        self,
        outputs: Any,
        labels: np.ndarray,
        pixel_loss: PixelLoss,
        *,
        weights: np.ndarray | None = None,
        step: int | Array = 0,
    ) -> dict[str, Tensor]:
        return super().losses(
            outputs, self.counted(labels), pixel_loss, weights=None if weights is None else self.counted(weights)
        )

    def counted(self, maps: np.ndarray) -> np.ndarray:
        """What counts of labels or weights (N, H, W): all, or every s-th pixel."""
        stride = self.output_stride if self.shrunk_labels else 1
        return maps[:, ::stride, ::stride]


class FullyConnected(nn.Module):
    """VGG's fc6 to fc8 as convolutions, on a map that keeps its size.

    forward:   (N, h, w, in_channels) -> scores (N, h, w, classes)
    features:  the same without fc8, (N, h, w, channels)

    rate    distance between the pixels under neighbouring weights of fc6
    beside  channels that fc8 sees besides those of fc7
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        classes: int,
        *,
        kernel: int = 3,
        rate: int = 12,
        beside: int = 0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        padding = (kernel - 1) * rate // 2
        self.fc6 = nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=rate, rng=rng)
        self.dropout6 = nn.Dropout(dropout, rng=rng)
        self.fc7 = nn.Conv2d(channels, channels, 1, rng=rng)
        self.dropout7 = nn.Dropout(dropout, rng=rng)
        self.fc8 = nn.Conv2d(channels + beside, classes, 1, init=CLASSIFIER_INIT, rng=rng)

    def features(self, x: Input) -> Input:
        x = self.dropout6(F.relu(self.fc6(x)))
        return self.dropout7(F.relu(self.fc7(x)))

    def forward(self, x: Input) -> Tensor:
        return self.fc8(self.features(x))


def check_settings(model: str, *, in_channels: int, classes: int, width: float) -> None:
    """The settings that all of them share."""
    if in_channels < 1:
        raise ValueError(f"{model}: in_channels must be at least 1, got {in_channels}")
    if classes < 1:
        raise ValueError(f"{model}: classes must be at least 1, got {classes}")
    if not width > 0:
        raise ValueError(f"{model}: width must be positive, got {width}; 1 is the paper's, 0.25 a quarter of it")
