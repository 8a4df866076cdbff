r"""U-Net: a contracting path that sees context, an expansive path that restores detail, and copies in between.

Ronneberger, Fischer & Brox, "U-Net: Convolutional networks for biomedical image segmentation", MICCAI 2015,
figure 1. In its own sizes, for an input tile of 572 x 572 pixels:

    572  1 -> 64 -> 64 ---------------- copy and crop --------------> 128 -> 64 -> 64 -> 2 classes  388
          \ max pool 2x2                                                 / up-conv 2x2
         284  128 -> 128 -------------- copy and crop ---------> 256 -> 128 -> 128   200
               \ max pool                                           / up-conv
              140  256 -> 256 --------- copy and crop ----> 512 -> 256 -> 256   104
                    \ max pool                                 / up-conv
                    68  512 -> 512 ---- copy and crop -> 1024 -> 512 -> 512   56
                         \ max pool                      / up-conv
                         32   1024 ------------------> 1024   28

Each arrow -> between channel numbers is a 3x3 convolution with ReLU. Without padding each takes 2 pixels off the
height and width, so that 388 of the 572 pixels are answered for; the answer to a larger image is put together from
overlapping tiles (`tinyseg.models.inference`). 31,030,658 parameters for 1 input channel and 2 classes.

Variants

    "paper"    the figure
    "release"  the network that the authors published: ReLU after each up-convolution, and the last one keeps
               128 channels (31,100,354 parameters)
    "padded"   the usual modern form: padding 1, so that logits are as large as the image, and batch
               normalisation instead of biases and dropout

Differences from the paper
    * Dropout: the paper places it "at the end of the contracting path" without saying where. It is where the
      released network has it: after the second convolution of the last two levels, rate 0.5.
    * Any input size works. In the unpadded variants pooling drops an odd last row or column, and the crop is
      central; the sides for which nothing is dropped are those that `input_side` returns. The padded variant
      mirrors the image at the bottom and right up to a multiple of 2^depth, and crops the logits.
    * `base` (the first level's channels) and `depth` (the number of poolings) can be made smaller.
"""

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.network import SegmentationNetwork
from tinyseg.tape import Tensor

VARIANTS = ("paper", "release", "padded")


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with ReLU; `padded` ones keep the size and are normalised."""

    def __init__(self, in_channels: int, out_channels: int, *, padded: bool, rng: np.random.Generator):
        options = {"padding": 1, "bias": False} if padded else {}
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, rng=rng, **options)
        self.norm1 = nn.BatchNorm2d(out_channels, relu=True) if padded else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, rng=rng, **options)
        self.norm2 = nn.BatchNorm2d(out_channels, relu=True) if padded else None

    def forward(self, x: Input) -> Tensor:
        y = self.conv1(x)
        y = self.norm1(y) if self.norm1 else F.relu(y)
        y = self.conv2(y)
        return self.norm2(y) if self.norm2 else F.relu(y)


def copy_and_crop(copied: Tensor, x: Input) -> Tensor:
    """The middle of `copied`, as large as x."""
    return copied if copied.shape[1:3] == x.shape[1:3] else F.crop(copied, size=x.shape[1:3])


class UNet(SegmentationNetwork):
    """See the top of this file.

    in_channels  of the image: 1 for grey, 3 for colour
    classes      of each pixel
    base         channels of the first level; each level down has twice as many
    depth        number of poolings
    variant      "paper", "release" or "padded"
    dropout      rate at the end of the contracting path, of the unpadded variants
    rng          draws the initial weights, N(0, 2 / inputs) as in the paper's section 3
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        *,
        base: int = 64,
        depth: int = 4,
        variant: str = "paper",
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        if variant not in VARIANTS:
            raise ValueError(f"UNet: unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
        for name, value in (("in_channels", in_channels), ("classes", classes), ("base", base), ("depth", depth)):
            if value < 1:
                raise ValueError(f"UNet: {name} must be at least 1, got {value}")
        self.in_channels, self.classes, self.depth, self.variant = in_channels, classes, depth, variant
        self.padded = variant == "padded"
        # Each of the four convolutions of level l, two at the bottom, takes 2^l pixels of the input off a side.
        self.context = 0 if self.padded else 4 * (2**depth - 1) + 2 * 2**depth
        channels = [base * 2**level for level in range(depth + 1)]

        inputs = [in_channels, *channels]
        self.contracting = [
            DoubleConv(inputs[level], channels[level], padded=self.padded, rng=rng) for level in range(depth + 1)
        ]
        self.pool = nn.MaxPool2d(2)
        last_levels = 0 if self.padded else 2
        self.dropout = [
            nn.Dropout(dropout, rng=rng) if level > depth - last_levels else nn.Identity()
            for level in range(depth + 1)
        ]
        self.up_conv = []
        self.expansive = []
        for level in reversed(range(depth)):
            kept = channels[level + 1] if variant == "release" and level == 0 else channels[level]
            up_conv = nn.ConvTranspose2d(channels[level + 1], kept, 2, stride=2, rng=rng)
            self.up_conv.append(nn.Sequential(up_conv, nn.ReLU()) if variant == "release" else up_conv)
            self.expansive.append(DoubleConv(channels[level] + kept, channels[level], padded=self.padded, rng=rng))
        self.classifier = nn.Conv2d(base, classes, 1, rng=rng)

    def forward(self, x: Input) -> Tensor:
        height, width = x.shape[1:3]
        below, beside = -height % 2**self.depth, -width % 2**self.depth
        if not self.padded:
            self._check_size(height, width)
        elif below or beside:
            x = F.pad(x, (0, below, 0, beside), mode="reflect")

        copies = []
        for level, convs in enumerate(self.contracting):
            x = self.dropout[level](convs(x))
            if level < self.depth:
                copies.append(x)
                x = self.pool(x)
        for up_conv, convs in zip(self.up_conv, self.expansive, strict=True):
            x = up_conv(x)
            x = convs(F.concat([copy_and_crop(copies.pop(), x), x]))
        logits = self.classifier(x)
        return F.crop(logits, size=(height, width), offset=0) if self.padded and (below or beside) else logits

    def input_side(self, output_side: int) -> int:
        """Side of the input tile for output_side pixels: 572 for 388. No pooling drops a pixel there."""
        if self.padded:
            return output_side
        bottom = 5  # the fewest pixels that two convolutions leave one of
        while self._output_side(bottom) < output_side:
            bottom += 1
        return self._input_side_of_bottom(bottom)

    def _input_side_of_bottom(self, side: int) -> int:
        """The side of the input whose last pooling leaves `side` pixels."""
        for _ in range(self.depth):
            side = 2 * side + 4
        return side

    def _output_side(self, bottom: int) -> int:
        """The side of the output, from that of what the last pooling leaves."""
        side = bottom - 4
        for _ in range(self.depth):
            side = 2 * side - 4
        return side

    def _check_size(self, height: int, width: int) -> None:
        smallest = self.input_side(1)
        if min(height, width) < smallest:
            raise ValueError(
                f"UNet: an image of {height} x {width} pixels is too small: unpadded convolutions through "
                f"{self.depth} levels need at least {smallest} x {smallest}. Use larger images, a smaller depth "
                'or variant="padded"; models.inference.predict_logits mirrors the borders'
            )
