r"""Atrous spatial pyramid pooling with image features: the head of DeepLab v3 and v3+.

Chen, Papandreou, Schroff & Adam, "Rethinking atrous convolution for semantic image segmentation", 2017, section
3.3 and figure 5. On the map that a ResNet makes of 513 x 513 pixels with output stride 16:

                    +-- 1x1 conv ------------------------------+
                    +-- 3x3 conv, rate  6 ---------------------+
    33 x 33, 2048 --+-- 3x3 conv, rate 12 ---------------------+-- concat, 1280 -- 1x1 conv -- dropout -- 256
                    +-- 3x3 conv, rate 18 ---------------------+
                    +-- mean, 1 x 1 -- 1x1 conv -- enlarged ---+

Each conv has 256 outputs, batch normalisation and ReLU. A 3x3 kernel of rate r looks at nine pixels that are r
apart: the branches see the surroundings of a pixel on several scales, and the mean sees all of the image. Where
r comes near the side of the map, eight of the nine weights only meet padding, and a 1x1 convolution is left;
that is what the image features make up for.

15,535,104 parameters for 2048 channels, or 3,019,776 with `separable`: there each 3x3 convolution is one of every
channel for itself, and a 1x1 convolution across them, both with batch normalisation and ReLU (DeepLab v3+).

In training on a batch of one image, the image features are one pixel, whose variance is 0. To normalise that would
only leave the shift, and would pull the running variance to 0; so these features are normalised with the running
statistics then, which stay as they are.

Names of weights are torchvision's: convs.0.0.weight, convs.4.1.weight, project.0.weight.

Differences from the release
    * The mean is over the whole map. The released code averages windows of the size that a training crop's map
      has, which for such a crop is the same.
    * The branches are concatenated as in torchvision and in the figure, the image features last; the released code
      has them first. This is a matter of the order of the rows of project.0.weight.
    * Running averages take in a tenth of each batch; in the release it is 0.0003, right for a training as long as
      its own.
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.tape import Tensor


class ASPP(nn.Module):
    """See the top of this file. (N, h, w, in_channels) -> (N, h, w, channels)

    rates          of the 3x3 convolutions, as many as there are to be
    image_pooling  have the branch of the mean
    separable      3x3 convolutions in two steps
    dropout        rate behind the last convolution
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        *,
        rates: Sequence[int] = (6, 12, 18),
        image_pooling: bool = True,
        separable: bool = False,
        dropout: float = 0.1,
        rng: np.random.Generator,
    ):
        self.convs = [conv1x1(in_channels, channels, rng=rng)]
        for _ in rates:
            self.convs.append(conv3x3(in_channels, channels, separable=separable, rng=rng))
        self.pyramid = len(rates)
        if image_pooling:
            self.convs.append(ImagePooling(in_channels, channels, rng=rng))
        self.project = conv1x1(len(self.convs) * channels, channels, rng=rng)
        self.dropout = nn.Dropout(dropout, rng=rng)
        self.set_rates(rates)

    def set_rates(self, rates: Sequence[int]) -> None:
        """Change the rates of the 3x3 convolutions, also after training: those of a finer map are larger."""
        if len(rates) != self.pyramid or min(rates, default=1) < 1:
            raise ValueError(
                f"ASPP: there are {self.pyramid} 3x3 convolutions, for as many positive rates; got {tuple(rates)}"
            )
        self.rates = tuple(rates)
        for branch, rate in zip(self.convs[1:], rates, strict=False):
            conv = branch[0]
            assert isinstance(conv, nn.Conv2d)
            conv.options["dilation"] = conv.options["padding"] = rate

    def forward(self, x: Input) -> Input:
        return self.dropout(self.project(F.concat([branch(x) for branch in self.convs])))


class ImagePooling(nn.Sequential):
    """The mean over the image, a 1x1 convolution, and the result at every pixel."""

    def __init__(self, in_channels: int, channels: int, *, rng: np.random.Generator):
        super().__init__(nn.GlobalAvgPool2d(), *conv1x1(in_channels, channels, rng=rng))

    def forward(self, x: Input) -> Tensor:
        mean, conv, norm = self
        assert isinstance(norm, nn.BatchNorm2d)
        y = conv(mean(x))
        y = normalised_by_running(norm, y) if x.shape[0] == 1 else norm(y)
        return F.resize(y, x.shape[1:3], align_corners=True)


def normalised_by_running(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What the layer does while it is frozen."""
    statistics = {"mean": norm.running_mean.data, "var": norm.running_var.data}
    return F.batch_norm(x, norm.weight, norm.bias, eps=norm.eps, relu=norm.relu, **statistics)[0]


def conv1x1(in_channels: int, channels: int, *, rng: np.random.Generator) -> nn.Sequential:
    """A 1x1 convolution, batch normalisation and ReLU."""
    conv = nn.Conv2d(in_channels, channels, 1, bias=False, rng=rng)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, relu=True))


def conv3x3(in_channels: int, channels: int, *, separable: bool, rng: np.random.Generator) -> nn.Sequential:
    """A 3x3 convolution, batch normalisation and ReLU; or channel by channel, and then across them."""
    if not separable:
        conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False, rng=rng)
        return nn.Sequential(conv, nn.BatchNorm2d(channels, relu=True))
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False, rng=rng)
    pointwise = conv1x1(in_channels, channels, rng=rng)
    return nn.Sequential(depthwise, nn.BatchNorm2d(in_channels, relu=True), *pointwise)
