r"""torchvision's FCN on a dilated ResNet: fcn_resnet50 and fcn_resnet101.

The fully convolutional network of Long, Shelhamer & Darrell (CVPR 2015) in the form in which torchvision trains
it: a trunk with a fine last map instead of skip connections from finer maps. For 520 x 520 pixels:

    image 520 -- conv1 260 -- pool 130 -- layer1 130 -- layer2 65 -- layer3 65 -- layer4 65
                 64                       256           512          1024         2048
                                                                      | rate 2     | rate 4
                                               auxiliary head 65 <----+            +----> head 65
                                               3x3 conv, 256                              3x3 conv, 512
                                               dropout 0.1                                dropout 0.1
                                               1x1 conv, classes                          1x1 conv, classes
                                                |                                          |
                                          auxiliary logits 520                        logits 520

Strides are traded for dilations in layer3 and layer4, and the first unit of each keeps the rate of the stage
before. A convolution of a head has batch normalisation and ReLU behind it. Logits are enlarged bilinearly, with
the corners of the pixels and not their centres aligned (align_corners=False).

The auxiliary head helps to train the middle of the network, and is not used otherwise: `outputs` returns both
answers, of which torchvision weighs the losses 1 and 0.5. Published files hold its weights.

    network         parameters, 21 classes   with the auxiliary head
    fcn_resnet50    32,957,013               35,322,218
    fcn_resnet101   51,949,141               54,314,346

Names of weights are torchvision's: backbone.layer1.0.conv1.weight, classifier.4.bias, aux_classifier.0.weight.

Differences from torchvision
    * Initial weights of the heads are N(0, 2 / inputs) where a ReLU follows.
    * `width` multiplies all channels; ResNet-18 and 34 can be the trunk too, which torchvision does not dilate.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.backend import Array
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.resnet import ResNet
from tinyseg.models.network import PixelLoss, SegmentationNetwork
from tinyseg.tape import Tensor


class Outputs(NamedTuple):
    """What the network says in training. Logits are as large as the image."""

    logits: Tensor  # N H W classes
    auxiliary: Tensor | None  # N H W classes


class DilatedResNet(SegmentationNetwork):
    """A dilated ResNet with one of torchvision's heads and an auxiliary one. Subclasses make the head.

    Takes any image from 1 x 1 pixel on.

    depth             of the ResNet: 18, 34, 50 or 101
    auxiliary         have the auxiliary head
    auxiliary_weight  of its loss
    width             multiplies all channels
    rng               draws the initial weights
    """

    align_corners = False

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        depth: int = 50,
        auxiliary: bool = True,
        auxiliary_weight: float = 0.5,
        width: float = 1.0,
        rng: np.random.Generator,
    ):
        if classes < 1:
            raise ValueError(f"{type(self).__name__}: classes must be at least 1, got {classes}")
        self.in_channels, self.classes, self.auxiliary_weight = in_channels, classes, auxiliary_weight
        self.backbone = ResNet(in_channels, None, depth=depth, output_stride=8, width=width, rng=rng)
        channels = self.backbone.stage_channels
        self.classifier = self.make_head(channels["layer4"], width, rng)
        self.aux_classifier = FCNHead(channels["layer3"], classes, rng=rng) if auxiliary else None

    def make_head(self, in_channels: int, width: float, rng: np.random.Generator) -> nn.Sequential:
        raise NotImplementedError

    def forward(self, x: Input) -> Tensor:
        last = self.backbone.stages(x)["layer4"]
        return enlarge(self.classifier(last), x)

    def outputs(self, x: Input) -> Outputs:
        """The answers of both heads, each (N, H, W, classes)."""
        maps = self.backbone.stages(x)
        logits = enlarge(self.classifier(maps["layer4"]), x)
        auxiliary = None if self.aux_classifier is None else enlarge(self.aux_classifier(maps["layer3"]), x)
        return Outputs(logits, auxiliary)

    def losses(
        self,
        outputs: Outputs,
        labels: np.ndarray,
        pixel_loss: PixelLoss,
        *,
        weights: np.ndarray | None = None,
        step: int | Array = 0,
    ) -> dict[str, Tensor]:
        """Those of the two heads, "pixels" and "auxiliary"."""
        losses = {"pixels": pixel_loss(outputs.logits, labels, weights)}
        if outputs.auxiliary is not None:
            losses["auxiliary"] = F.mul(pixel_loss(outputs.auxiliary, labels, weights), self.auxiliary_weight)
        return losses


class FCNResNet(DilatedResNet):
    """torchvision's fcn_resnet50 and fcn_resnet101. See the top of this file."""

    def make_head(self, in_channels: int, width: float, rng: np.random.Generator) -> nn.Sequential:
        return FCNHead(in_channels, self.classes, rng=rng)


class FCNHead(nn.Sequential):
    """A 3x3 convolution to a quarter of the channels, and one score for each class."""

    def __init__(self, in_channels: int, classes: int, *, rng: np.random.Generator):
        channels = classifier.scaled(in_channels, 1 / 4)
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False, rng=rng),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1, rng=rng),
            nn.Conv2d(channels, classes, 1, init=classifier.LINEAR_UNIFORM, rng=rng),
        )


def enlarge(logits: Tensor, image: Input) -> Tensor:
    return F.resize(logits, image.shape[1:3], align_corners=False)
