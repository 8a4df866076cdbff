r"""DeepLab v2: branches with different rates, added up (atrous spatial pyramid pooling), on VGG-16 or ResNet-101.

Chen, Papandreou, Kokkinos, Murphy & Yuille, "DeepLab: Semantic image segmentation with deep convolutional nets,
atrous convolution, and fully connected CRFs", TPAMI 2018 (arXiv 1606.00915), figures 4 and 7. For 321 x 321
pixels:

    VGG-16 up to pool5             +-- fc6 3x3, rate  6 -- fc7 1x1 -- fc8 1x1 --+
    (deeplab_v1.py)      41, 512 --+-- fc6 3x3, rate 12 -- fc7 1x1 -- fc8 1x1 --+-- sum -- x8 -- logits 321
                                   +-- fc6 3x3, rate 18 -- fc7 1x1 -- fc8 1x1 --+   41, classes
                                   +-- fc6 3x3, rate 24 -- fc7 1x1 -- fc8 1x1 --+
                                       1024, dropout  1024, dropout

    ResNet-101, layer3 with        +-- 3x3, rate  6 --+
    rate 2, layer4 with 4          +-- 3x3, rate 12 --+-- sum -- x8 -- logits 321
                        41, 2048 --+-- 3x3, rate 18 --+   41, classes
                                   +-- 3x3, rate 24 --+

    aspp         rates            parameters, 21 classes: VGG-16    ResNet-101
    "L"          6, 12, 18, 24                            37,877,652   44,048,532
    "S"          2, 4, 8, 12                              37,877,652   44,048,532
    "LargeFOV"   12                                       20,505,429   42,887,253

The branches of the ResNet have no nonlinearity: they are one kernel with 4 * 9 taps. ASPP of DeepLab v3 is another
thing (aspp.py).

Multi-scale inputs (`multi_scale`): the same network sees the image at 1, 0.75 and 0.5 of its size. The scores
are enlarged to the first grid, and of the three the largest counts, for each pixel and class. Training adds up
four losses: of the result, and of each scale alone.

Training of the paper: labels shrunk by 8 (`shrunk_labels`), learning rate 10 times as high behind the trunk
(`paper_rates`); then a dense CRF.

Differences from the paper, or choices where paper and release differ
    * In the release of the ResNet all batch normalisations are frozen, scale and shift too, at the values from
      ImageNet. Without a pretrained trunk that is no normalisation, so here they learn (105,344 of the parameters)
      unless frozen_norms=True.
    * As released, the first convolution of a ResNet's unit has the stride (style "caffe"), and the VGG has no
      average pooling behind pool5 (DeepLab v1's has).
    * Scores are enlarged with align_corners, as Caffe's interpolation does, and images padded to the grid
      (deeplab.py).
    * For the loss of the half-sized image alone, the release shrinks the labels by 16. Here its scores are
      enlarged to the first grid, as those of 0.75 are.
    * `width` multiplies all channels; the trunk may be any ResNet.
"""

from typing import NamedTuple

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.backend import Array
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.resnet import UNITS, ResNet
from tinyseg.models.backbones.vgg import VGGLargeFOV
from tinyseg.models.deeplab import CLASSIFIER_INIT, DeepLab, FullyConnected, check_settings
from tinyseg.models.network import LearningRates, PixelLoss
from tinyseg.tape import Tensor

RATES = {"L": (6, 12, 18, 24), "S": (2, 4, 8, 12), "LargeFOV": (12,)}
SCALES = (1.0, 0.75, 0.5)
RESNETS = {f"resnet{depth}": depth for depth in UNITS}


class Outputs(NamedTuple):
    """What the network says in training with several scales, all on one grid."""

    logits: Tensor  # N h w classes, fused
    scales: list[Tensor]  # N h w classes, of 1, 0.75 and 0.5 alone


class DeepLabV2(DeepLab):
    """See the top of this file.

    backbone       "vgg16", or "resnet101" and the like
    aspp           "L", "S" or "LargeFOV": which rates
    multi_scale    fuse the scores of three sizes of the image
    shrunk_labels  train on every 8th pixel, as the paper does
    frozen_norms   keep the batch normalisations of a ResNet as they are
    width          multiplies all channels
    dropout        rate behind fc6 and fc7 of VGG
    rng            draws the initial weights
    """

    output_stride = 8
    paper_rates = LearningRates(head=10.0, bias=2.0)

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        backbone: str = "resnet101",
        aspp: str = "L",
        multi_scale: bool = False,
        shrunk_labels: bool = False,
        frozen_norms: bool = False,
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        check_settings("DeepLabV2", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("DeepLabV2", "backbone", backbone, ("vgg16", *RESNETS))
        classifier.check_choice("DeepLabV2", "aspp", aspp, tuple(RATES))
        self.in_channels, self.classes = in_channels, classes
        self.multi_scale, self.shrunk_labels = multi_scale, shrunk_labels
        if backbone == "vgg16":
            self.trunk = VGGLargeFOV(in_channels, None, average_pool=False, width=width, rng=rng)
            channels, hidden = self.trunk.stage_channels["pool5"], classifier.scaled(1024, width)
            self.branches = [
                FullyConnected(channels, hidden, classes, rate=rate, dropout=dropout, rng=rng)
                for rate in RATES[aspp]
            ]
        else:
            self.trunk = ResNet(
                in_channels, None, depth=RESNETS[backbone], style="caffe", output_stride=8, width=width, rng=rng
            )
            channels = self.trunk.stage_channels["layer4"]
            self.branches = [
                nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate, init=CLASSIFIER_INIT, rng=rng)
                for rate in RATES[aspp]
            ]
        if frozen_norms:
            self.freeze_norms(scale_and_shift=True)

    def head_parts(self) -> list[nn.Module]:
        """The last layer of each branch."""
        return [branch.fc8 if isinstance(branch, FullyConnected) else branch for branch in self.branches]

    def scores(self, x: Input) -> Tensor:
        return self.scores_of_scales(x)[0] if self.multi_scale else self.scores_of_one_scale(x)

    def outputs(self, x: Input) -> Tensor | Outputs:
        """The logits; with several scales, also those of each. With shrunk labels, the scores instead."""
        if not self.multi_scale:
            return super().outputs(x)
        fused, scales = self.scores_of_scales(self.on_grid(x))
        size = fused.shape[1:3]
        on_one_grid = [scales[0], *(F.resize(map, size, align_corners=True) for map in scales[1:])]
        return Outputs(self.answers(fused, x), [self.answers(map, x) for map in on_one_grid])

    def losses(
        self,
        outputs: Tensor | Outputs,
        labels: np.ndarray,
        pixel_loss: PixelLoss,
        *,
        weights: np.ndarray | None = None,
        step: int | Array = 0,
    ) -> dict[str, Tensor]:
        """Those of the result, "pixels", and of each scale if there are several."""
        if not isinstance(outputs, Outputs):
            return super().losses(outputs, labels, pixel_loss, weights=weights, step=step)
        labels, weights = self.counted(labels), None if weights is None else self.counted(weights)
        terms = {"pixels": pixel_loss(outputs.logits, labels, weights)}
        for scale, logits in zip(SCALES, outputs.scales, strict=True):
            terms[f"scale_{scale:g}"] = pixel_loss(logits, labels, weights)
        return terms

    def scores_of_one_scale(self, x: Input) -> Tensor:
        x = self.trunk.stages(x)[self.trunk.last_stage]
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = F.add(total, branch(x))
        return total

    def scores_of_scales(self, x: Input) -> tuple[Tensor, list[Tensor]]:
        """The fused scores, and those of each scale on its own grid: (N, h, w, classes) for 1, 0.75 and 0.5."""
        height, width = x.shape[1:3]
        scales = []
        for scale in SCALES:
            size = shrunk(height, scale), shrunk(width, scale)
            image = x if scale == 1 else F.resize(x, size, align_corners=True)
            scales.append(self.scores_of_one_scale(image))
        size = scales[0].shape[1:3]
        return maximum([scales[0], *(F.resize(map, size, align_corners=True) for map in scales[1:])]), scales


def shrunk(side: int, scale: float) -> int:
    """The side of the smaller image whose corner pixels are those of the larger: 241 for 0.75 * 321."""
    return int((side - 1) * scale + 0.5) + 1


def maximum(maps: list[Tensor]) -> Tensor:
    """The largest of several maps (N, h, w, C), element by element: a pooling over a column of them."""
    n, h, w, c = maps[0].shape
    columns = F.reshape(F.concat(maps), (n * h * w, len(maps), 1, c))
    return F.reshape(F.global_max_pool2d(columns), (n, h, w, c))
