r"""FastFCN: the fine map that dilation would compute, guessed from the coarse maps of a network without dilation.

Wu, Zhang, Huang, Liang & Yu, "FastFCN: Rethinking dilated convolution in the backbone for semantic segmentation",
2019, figures 2 and 4. ResNet-50, for 480 x 480 pixels:

    image 480 -- conv1 240 -- pool 120 -- layer1 120 -- layer2 60 -- layer3 30 -- layer4 15
                 128                      256           512  |       1024  |      2048  |
                                                        3x3 conv     3x3 conv     3x3 conv       each 512
                                                             |       x2    |      x4    |
                                                             +-------------+------------+-- concat 60, 1536
                                                                                              |
                    +-----------------+------------------+------------------+-----------------+
                separable         separable          separable          separable       each 1536 -> 512
                  rate 1            rate 2             rate 4             rate 8
                    +-----------------+---------+--------+------------------+
                                                |
                                       concat 60, 2048 -- head -- x8 -- logits 480

The part from layer2 to the second concat is the joint pyramid upsampling, JPU. What it returns has the size and
the channels of the last map of a dilated ResNet, so that any head of dilated networks fits on it.

Why it can work. A dilated convolution is: split the map into phases (every r-th pixel), convolve each phase with
the ordinary kernel, interleave the results. A stride keeps the phase (0, 0) only. So the map of a network with
strides is an exact subsampling of that of the dilated one, with the same weights (tests/models/test_fastfcn.py),
and what is missing are the other phases, of which layer2 and layer3 still hold what they are made from.

    joint             after layer4, ResNet-50 and 101
    "jpu"             19,735,552 parameters
    "jpu_x"           19,719,168: two steps, (layer2, layer3) with rates 1, 2, 4 and half the channels, then (that,
                      layer4) with rates 2, 4, 8; each concatenates the enlarged coarse map and three separable
                      convolutions, which have group normalisation
    None              0: the ResNet is dilated instead, output stride 8: the network that FastFCN replaces

    head              on 2048 channels
    "fcn"             3x3 conv 512, dropout 0.1, 1x1 conv
    "psp"             means over 1, 2 x 2, 3 x 3 and 6 x 6 bins, each through a 1x1 conv 512 and enlarged; the map
                      and these concatenated, 4096; then as "fcn"
    "deeplab"         ASPP with rates 12, 24, 36 (aspp.py), dropout 0.5, 3x3 conv 256, dropout 0.1, 1x1 conv
    "encnet"          1x1 conv 512 (3x3 without joint); the image as a whole, by the encoding layer with 32
                      codewords, decides how much each channel counts; dropout 0.1, 1x1 conv. `lateral` adds layer2
                      and layer3 once more: 1x1 conv 512 each, concatenated, 3x3 conv 512

Each conv of a head but the last has batch normalisation and ReLU. In training there are more answers: an auxiliary
FCN head on layer3, with a weight of 0.2 (0.4 with "psp" and "deeplab"), and in "encnet" one logit for each class,
whether it is in the image at all, with a weight of 0.2. `outputs` returns all of them, and `losses` their weighted
losses. All but the ResNet learns with ten times its rate (`paper_rates`).

    parameters, 59 classes, with auxiliary head     ResNet-50                    ResNet-101
                                                    dilated       "jpu"          dilated       "jpu"
    fcn                                             35,475,254    55,210,806     54,467,382    74,202,934
    psp                                             49,110,838    68,846,390     68,102,966    87,838,518
    deeplab                                         42,147,382    61,882,934     61,139,510    80,875,062
    encnet                                          36,047,825    47,394,769     55,039,953    66,386,897

The joint upsampling adds parameters. What it saves is arithmetic and memory, in layer3 and layer4.

Differences from the release
    * Pixels to ignore are told by `ignore_label`; the release fills the border of a padded mask with class 0.
    * With a batch of one image, means of a single pixel are normalised with the running statistics (aspp.py).
    * `lateral` enlarges layer3 to the size of layer2, which with JPU has twice its size.
    * The presence loss counts the classes of labelled pixels only, and 0 is a class like the others.
    * `width` multiplies all channels. Group normalisation has 32 groups, or as many as divide fewer channels.

Any image of at least 1 x 1 pixels is taken.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import cuda, nn
from tinyseg import functional as F
from tinyseg.backend import Array
from tinyseg.functional import Input
from tinyseg.models import backbones
from tinyseg.models.aspp import ASPP, conv1x1, conv3x3, normalised_by_running
from tinyseg.models.backbones import classifier
from tinyseg.models.deeplab import check_settings
from tinyseg.models.network import LearningRates, PixelLoss, SegmentationNetwork
from tinyseg.ops.label_maps import present_classes
from tinyseg.tape import Tensor

HEADS = ("fcn", "psp", "encnet", "deeplab")
JOINTS = ("jpu", "jpu_x", None)
AUXILIARY_WEIGHTS = {"fcn": 0.2, "encnet": 0.2, "psp": 0.4, "deeplab": 0.4}
BINS = (1, 2, 3, 6)


class Outputs(NamedTuple):
    """What the network says in training. Logits are as large as the image."""

    logits: Tensor  # N H W classes
    auxiliary: Tensor | None  # N H W classes
    presence: Tensor | None  # N classes: is the class anywhere in the image?


# ------------------------------------------------------------------------------------------- joint upsampling


class JPU(nn.Module):
    """Joint pyramid upsampling: maps of layer2, layer3, layer4 -> one of layer2's size, with 4 * width channels.

    channels  of the three maps, (512, 1024, 2048) in ResNet-50
    """

    rates = (1, 2, 4, 8)

    def __init__(self, channels: Sequence[int], width: int = 512, *, rng: np.random.Generator):
        self.conv3, self.conv4, self.conv5 = (
            conv3x3(given, width, separable=False, rng=rng) for given in channels
        )
        self.dilations = [separable(3 * width, width, rate, nn.BatchNorm2d, rng=rng) for rate in self.rates]

    def forward(self, layer2: Input, layer3: Input, layer4: Input) -> Tensor:
        size = layer2.shape[1:3]
        deep, middle = enlarge(self.conv5(layer4), size), enlarge(self.conv4(layer3), size)
        x = F.concat([deep, middle, self.conv3(layer2)])
        return F.concat([branch(x) for branch in self.dilations])


class JPUX(nn.Module):
    """Joint pyramid upsampling in two steps, each from one map to the next finer one. As `JPU` from outside."""

    def __init__(self, channels: Sequence[int], width: int = 512, *, rng: np.random.Generator):
        half = max(1, width // 2)
        self.joint1 = JointStep(channels[1], channels[0], half, (1, 2, 4), rng=rng)
        self.joint2 = JointStep(channels[2], 4 * half, width, (2, 4, 8), rng=rng)

    def forward(self, layer2: Input, layer3: Input, layer4: Input) -> Tensor:
        return self.joint2(layer4, self.joint1(layer3, layer2))


class JointStep(nn.Module):
    """A coarse map and a fine one -> a map of the fine one's size, with 4 * width channels."""

    def __init__(self, coarse: int, fine: int, width: int, rates: Sequence[int], *, rng: np.random.Generator):
        self.conv_coarse = conv3x3(coarse, width, separable=False, rng=rng)
        self.conv_fine = conv3x3(fine, width, separable=False, rng=rng)
        self.dilations = [separable(2 * width, width, rate, group_norm, rng=rng) for rate in rates]

    def forward(self, coarse: Input, fine: Input) -> Tensor:
        coarse = enlarge(self.conv_coarse(coarse), fine.shape[1:3])
        x = F.concat([coarse, self.conv_fine(fine)])
        return F.concat([coarse, *(branch(x) for branch in self.dilations)])


def separable(
    in_channels: int, channels: int, rate: int, norm: Callable[[int], nn.Module], *, rng: np.random.Generator
) -> nn.Sequential:
    """A dilated 3x3 convolution of every channel for itself, a norm without ReLU, a 1x1 one across them."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False, rng=rng
    )
    pointwise = nn.Conv2d(in_channels, channels, 1, bias=False, rng=rng)
    return nn.Sequential(depthwise, norm(in_channels), pointwise, norm(channels), nn.ReLU())


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


def enlarge(x: Input, size: Sequence[int]) -> Tensor:
    return F.resize(x, tuple(size), align_corners=True)


# ------------------------------------------------------------------------------------------------------- heads


def score(channels: int, classes: int, *, rng: np.random.Generator) -> nn.Sequential:
    """Dropout of whole channels, and one score for each class."""
    scores = nn.Conv2d(channels, classes, 1, init=classifier.LINEAR_UNIFORM, rng=rng)
    return nn.Sequential(nn.Dropout(0.1, channels=True, rng=rng), scores)


def fcn_head(in_channels: int, channels: int, classes: int, *, rng: np.random.Generator) -> nn.Sequential:
    conv = conv3x3(in_channels, channels, separable=False, rng=rng)
    return nn.Sequential(*conv, *score(channels, classes, rng=rng))


class PSPHead(nn.Module):
    """Pyramid scene parsing: what is in the whole image, its quarters, ninths and 36ths, at every pixel."""

    def __init__(self, in_channels: int, classes: int, *, rng: np.random.Generator):
        quarter = classifier.scaled(in_channels, 1 / 4)
        self.branches = [conv1x1(in_channels, quarter, rng=rng) for _ in BINS]
        self.fcn = fcn_head(in_channels + 4 * quarter, quarter, classes, rng=rng)

    def forward(self, x: Input) -> Tensor:
        maps = [x]
        for bins, (conv, norm) in zip(BINS, self.branches, strict=True):
            assert isinstance(norm, nn.BatchNorm2d)
            y = conv(F.adaptive_avg_pool2d(x, bins))
            y = normalised_by_running(norm, y) if y.data.size == y.shape[-1] else norm(y)
            maps.append(enlarge(y, x.shape[1:3]))
        return self.fcn(F.concat(maps))


class DeepLabHead(nn.Sequential):
    """ASPP for output stride 8, and an FCN head."""

    def __init__(self, in_channels: int, classes: int, *, rng: np.random.Generator):
        channels = classifier.scaled(in_channels, 1 / 8)
        pyramid = ASPP(in_channels, channels, rates=(12, 24, 36), rng=rng)
        pyramid.dropout = nn.Dropout(0.5, channels=True, rng=rng)
        super().__init__(pyramid, fcn_head(channels, channels, classes, rng=rng))


class Encoding(nn.Module):
    """The encoding layer, ops/encoding.py, with its codewords: (N, H, W, channels) -> (N, channels, codewords)."""

    def __init__(self, channels: int, codewords: int, *, rng: np.random.Generator):
        limit = 1 / math.sqrt(codewords * channels)
        self.codewords = nn.Parameter(rng.uniform(-limit, limit, (codewords, channels)).astype(np.float32))
        self.scales = nn.Parameter(rng.uniform(-1, 0, codewords).astype(np.float32))

    def forward(self, x: Input) -> Tensor:
        return F.encoding(x, self.codewords, self.scales)


class EncodingModule(nn.Module):
    """What the image as a whole is, and what follows for each channel.

    forward: (N, H, W, channels) -> the map with its channels weighed, and presence logits (N, classes)
    """

    def __init__(self, channels: int, classes: int, codewords: int, *, rng: np.random.Generator):
        self.conv = conv1x1(channels, channels, rng=rng)
        self.encoding = Encoding(channels, codewords, rng=rng)
        self.norm = nn.BatchNorm2d(codewords, relu=True)
        self.fc = nn.Linear(channels, channels, init=classifier.LINEAR_UNIFORM, rng=rng)
        self.presence = nn.Linear(channels, classes, init=classifier.LINEAR_UNIFORM, rng=rng)

    def forward(self, x: Input) -> tuple[Tensor, Tensor]:
        residuals = self.norm(self.encoding(self.conv(x)))  # N C K
        N, C, K = residuals.shape
        mean = cuda.constant_like(np.full((K, 1), 1 / K), self.fc.weight.data)
        image = F.reshape(F.linear(residuals, mean), (N, C))
        gate = F.reshape(F.sigmoid(self.fc(image)), (N, 1, 1, C))
        return F.relu(F.add(x, F.mul(x, gate))), self.presence(image)


class EncNetHead(nn.Module):
    """See the top of this file. channels: of the maps that it is given, the lateral ones first if there are any.

    forward: the last map, and for lateral ones those of layer2 and layer3 -> scores, presence logits
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        kernel: int,
        codewords: int,
        lateral: bool,
        rng: np.random.Generator,
    ):
        layer2, layer3, last = channels
        inner = classifier.scaled(last, 1 / 4)
        self.conv5 = (
            conv1x1(last, inner, rng=rng) if kernel == 1 else conv3x3(last, inner, separable=False, rng=rng)
        )
        self.lateral, self.fusion = [], None
        if lateral:
            self.lateral = [conv1x1(given, inner, rng=rng) for given in (layer2, layer3)]
            self.fusion = conv3x3(3 * inner, inner, separable=False, rng=rng)
        self.module = EncodingModule(inner, classes, codewords, rng=rng)
        self.score = score(inner, classes, rng=rng)

    def forward(self, x: Input, layer2: Input, layer3: Input) -> tuple[Tensor, Tensor]:
        x = self.conv5(x)
        if self.fusion is not None:
            beside = [conv(map) for conv, map in zip(self.lateral, (layer2, layer3), strict=True)]
            x = self.fusion(F.concat([x, *(enlarge(map, x.shape[1:3]) for map in beside)]))
        x, presence = self.module(x)
        return self.score(x), presence


# ----------------------------------------------------------------------------------------------------- network


class FastFCN(SegmentationNetwork):
    """See the top of this file.

    head              "fcn", "psp", "encnet" or "deeplab"
    backbone          "resnet50", "resnet101", or another ResNet
    joint             "jpu", "jpu_x", or None for a dilated ResNet without joint upsampling
    auxiliary         have the auxiliary head on layer3
    auxiliary_weight  of its loss: by default 0.2, or 0.4 for the heads "psp" and "deeplab"
    presence_weight   of the loss for the presence of classes, of the encnet head
    lateral           of the encnet head: show it layer2 and layer3 too
    codewords         of the encnet head
    stem              of the ResNet: "64-64-128" as published; "7x7" fits torchvision's weights
    width             multiplies all channels
    rng               draws the initial weights
    """

    align_corners = True
    paper_rates = LearningRates(head=10.0)

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        head: str = "encnet",
        backbone: str = "resnet50",
        joint: str | None = "jpu",
        auxiliary: bool = True,
        auxiliary_weight: float | None = None,
        presence_weight: float = 0.2,
        lateral: bool = False,
        codewords: int = 32,
        stem: str = "64-64-128",
        width: float = 1.0,
        rng: np.random.Generator,
    ):
        check_settings("FastFCN", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("FastFCN", "head", head, HEADS)
        classifier.check_choice("FastFCN", "joint", joint, JOINTS)
        classifier.check_choice(
            "FastFCN", "backbone", backbone, [name for name in backbones.BACKBONES if name.startswith("resnet")]
        )
        if lateral and head != "encnet":
            raise ValueError(f'FastFCN: lateral=True is for head="encnet", and head is {head!r}')
        if codewords < 1:
            raise ValueError(f"FastFCN: codewords must be at least 1, got {codewords}")
        self.in_channels, self.classes = in_channels, classes
        self.auxiliary_weight = AUXILIARY_WEIGHTS[head] if auxiliary_weight is None else auxiliary_weight
        self.presence_weight = presence_weight
        self.trunk = backbones.create(
            backbone, in_channels, None, stem=stem, width=width, output_stride=32 if joint else 8, rng=rng
        )
        layer2, layer3, layer4 = channels = [self.trunk.stage_channels[f"layer{stage}"] for stage in (2, 3, 4)]
        self.joint = None
        if joint is not None:
            each = classifier.scaled(layer4, 1 / 4)
            self.joint = (JPU if joint == "jpu" else JPUX)(channels, each, rng=rng)
            layer4 = 4 * each
        self.head = self._make_head(head, (layer2, layer3, layer4), codewords, lateral, rng)
        self.auxiliary = None
        if auxiliary:
            self.auxiliary = fcn_head(layer3, classifier.scaled(layer3, 1 / 4), classes, rng=rng)

    def _make_head(
        self, head: str, channels: tuple[int, int, int], codewords: int, lateral: bool, rng: np.random.Generator
    ) -> nn.Module:
        last, classes = channels[-1], self.classes
        if head == "fcn":
            return fcn_head(last, classifier.scaled(last, 1 / 4), classes, rng=rng)
        if head == "psp":
            return PSPHead(last, classes, rng=rng)
        if head == "deeplab":
            return DeepLabHead(last, classes, rng=rng)
        kernel = 1 if self.joint else 3
        return EncNetHead(channels, classes, kernel=kernel, codewords=codewords, lateral=lateral, rng=rng)

    def forward(self, x: Input) -> Tensor:
        return self._answer(x, auxiliary=False).logits

    def outputs(self, x: Input) -> Outputs:
        """All that the network says about images (N, H, W, in_channels), for training."""
        return self._answer(x, auxiliary=True)

    def _answer(self, x: Input, *, auxiliary: bool) -> Outputs:
        maps = self.trunk.stages(x)
        layer2, layer3, last = (maps[f"layer{stage}"] for stage in (2, 3, 4))
        if self.joint is not None:
            last = self.joint(layer2, layer3, last)
        scores, presence = (
            self.head(last, layer2, layer3) if isinstance(self.head, EncNetHead) else (self.head(last), None)
        )
        size = x.shape[1:3]
        beside = enlarge(self.auxiliary(layer3), size) if auxiliary and self.auxiliary is not None else None
        return Outputs(enlarge(scores, size), beside, presence)

    def losses(
        self,
        outputs: Outputs,
        labels: np.ndarray,
        pixel_loss: PixelLoss,
        *,
        weights: np.ndarray | None = None,
        step: int | Array = 0,
    ) -> dict[str, Tensor]:
        """Those of the logits ("pixels"), of the auxiliary head, and of the presence of the classes."""
        losses = {"pixels": pixel_loss(outputs.logits, labels, weights)}
        if outputs.auxiliary is not None:
            losses["auxiliary"] = F.mul(pixel_loss(outputs.auxiliary, labels, weights), self.auxiliary_weight)
        if outputs.presence is not None:
            present = present_classes(labels, self.classes, pixel_loss.ignore_label)
            losses["presence"] = F.mul(F.bce_with_logits(outputs.presence, present), self.presence_weight)
        return losses
