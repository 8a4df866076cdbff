r"""The plain baseline: 3x3 convolutions at full resolution, one after the other. What all the others improve on.

    360 x 480  image -> conv 3x3: 64 -> conv 3x3: 64 -> ... -> conv 3x3: 64 -> 1x1: classes  360 x 480

                     after layer    1     2     4     8                          numbers kept for one image of
                     pixels seen    3     5     9    17   (on a side)            this size: 11 million a layer

Every layer is padded, so that the maps are as large as the image, and nothing is ever made smaller. That is the
most direct way to an answer for each pixel, and it shows what a segmentation network has to solve:

    * Each 3x3 layer widens the context by 2 pixels. To see the 404 pixels that FCN-32s sees it would take 202.
    * Each 64 -> 64 layer costs 36,864 multiply-adds *per pixel*: 6.4 billion for 360 x 480, which is 40% of what
      all of VGG-16 costs for the 224 x 224 pixels of a classifier's image.
    * Training keeps each layer's result at full resolution, 44 MB a layer and image here.

Pooling lets the context grow by factors, and the cost fall by four with each; how to get the lost detail back is
what FCN, U-Net and FC-DenseNet differ in. Dilation gives context without the loss, and still pays for the
resolution. `tinyseg summary plain --size 360 480` puts numbers to this for each layer.

Differences from the paper
    * There is no paper of this very network. Long, Shelhamer & Darrell, "Fully convolutional networks for semantic
      segmentation", CVPR 2015, section 3, say what networks of convolutions alone compute, and section 3.2 what
      removing the subsampling costs.
    * norm=True adds batch normalisation, without which a stack this deep learns slowly.
"""

import numpy as np

from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.network import SegmentationNetwork
from tinyseg.tape import Tensor


class Plain(SegmentationNetwork):
    """See the top of this file. Takes any image from 1 x 1 pixel on.

    width   channels of each layer
    depth   number of convolutions before the classifier
    kernel  their height and width, an odd number
    norm    batch normalisation between each convolution and its ReLU, instead of the convolution's bias
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        width: int = 64,
        depth: int = 8,
        kernel: int = 3,
        norm: bool = False,
        rng: np.random.Generator,
    ):
        for name, value in (
            ("in_channels", in_channels),
            ("classes", classes),
            ("width", width),
            ("depth", depth),
        ):
            if value < 1:
                raise ValueError(f"Plain: {name} must be at least 1, got {value}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"Plain: kernel must be an odd number, to keep the size with equal padding, got {kernel}"
            )
        self.in_channels, self.classes = in_channels, classes
        layers: list[nn.Module] = []
        for i in range(depth):
            inputs = width if i else in_channels
            layers.append(nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=not norm, rng=rng))
            layers.append(nn.BatchNorm2d(width, relu=True) if norm else nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(width, classes, 1, rng=rng)

    def forward(self, x: Input) -> Tensor:
        return self.classifier(self.layers(x))
