r"""FCN: a classifier made of convolutions, whose coarse scores are enlarged, and sharpened by those of finer maps.

Long, Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, figures 1 and 3. On
VGG-16, with the sides of the maps for an image of 500 x 500 pixels (the first convolution pads by 100):

    image -> conv1 -> pool1 -> pool2 -> pool3 -> pool4 -> pool5 -> fc6 -> fc7 -> score_fr
     500      698      349      175       88       44       22      16     16       16
                                           |        |                                |
    FCN-32s                                |        |                  upscore, x 32: 544, crop at 19
                                           |        |                                |
    FCN-16s                                |   score_pool4: 44         upscore2, x 2: 34
                                           |   crop at 5 ----------> + <-------------'
                                           |                         |
                                           |           upscore16, x 16: 560, crop at 27
                                           |                         |
    FCN-8s                        score_pool3: 88      upscore_pool4, x 2: 70
                                  crop at 9 ------> + <--------------'
                                                    |
                                       upscore8, x 8: 568, crop at 31

    fc6       7x7, 4096 channels, and fc7, 1x1, 4096: the classifier's fully connected layers as convolutions
    score_..  1x1 convolutions to the classes; they start with zeros
    upscore.. transposed convolutions with the weights of bilinear interpolation, kernel 2 x stride
    +         a sum of scores, class by class

The padding of 100 leaves something of every image, however small, and shifts the maps; the crops undo the shift. A
cell i of a map looks at the image around pixel i * stride + b, where b adds up, over the layers, the stride before
the layer times ((kernel - 1) / 2 - padding). For score_fr b is 12.5; the middle of the enlarging kernel is 31.5;
hence 19. These crops fit for every size only if the poolings round up, as Caffe's do.

    name             backbone    stride    parameters for C classes    for 21         receptive field of score_fr
    fcn32s           vgg16       32        134,260,544 + 4,097 C       134,346,581    404
    fcn16s           vgg16       16        134,260,544 + 4,610 C       134,357,354    404
    fcn8s            vgg16        8        134,260,544 + 4,867 C       134,362,751    404
    fcn8s_at_once    vgg16        8        as fcn8s
    fcn_alexnet      alexnet     32         56,868,224 + 4,097 C        56,954,261    355
    fcn_googlenet    googlenet   32          5,973,552 + 1,025 C         5,995,077    715

Training in stages: the classifier's weights start FCN-32s, what that learns starts FCN-16s, and so on. As the new
scorer starts with zeros, each stage first answers nearly as the one before. In the authors' code each has a 100th
of the learning rate of the one before:

    tinyseg train fcn --data VOCdevkit --out runs/fcn32s --init vgg16-397923af.pth
    tinyseg train fcn --data VOCdevkit --out runs/fcn16s --init runs/fcn32s -s model.name=fcn16s -s optim.lr=1.9e-7
    tinyseg train fcn --data VOCdevkit --out runs/fcn8s --init runs/fcn16s -s model.name=fcn8s -s optim.lr=1.9e-9

    coarse = models.create("fcn32s");   coarse.start_from_classifier(vgg)       # or in Python; then train it
    finer = models.create("fcn16s");    finer.start_from(coarse)

At once: all of FCN-8s is trained straight from the classifier; fixed factors, 0.01 on pool4 and 0.0001 on pool3,
bring those maps to the scale of the others.

Differences from the paper
    * The enlarging weights are fixed, as in the authors' code, which found no difference. learn_upsampling=True
      learns those that enlarge by 2, from the bilinear start, as the paper says. Fixed ones are stored once for
      each class; Caffe stores a matrix between the classes, zero off its diagonal (1,806,336 numbers for FCN-32s).
    * padding="same" is the usual modern form: the first convolution pads by 1, fc6 by 3, and nothing is shifted;
      what the rounding up of the poolings adds is cut off at the bottom and right. AlexNet's poolings do shift:
      there the first convolution pads by 21 and fc6 by 3 before and 2 behind, so that no pixel lacks an answer.
    * Padding and crops of FCN-GoogLeNet were never published. Without padding, an enlarging kernel of 64 and a
      crop at 1 fit every size, to half a pixel. The paper's receptive field of 907 counts the average pooling,
      which it says to drop; without it the field is 715.
    * Where no classifier is given, convolutions start as N(0, 2 / inputs); the authors always give one.
    * `width` multiplies the channels of the backbone and of fc6 and fc7.
"""

from typing import Literal

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones.alexnet import AlexNet
from tinyseg.models.backbones.classifier import Classifier, scaled
from tinyseg.models.backbones.googlenet import GoogLeNet
from tinyseg.models.backbones.vgg import VGG
from tinyseg.models.network import LearningRates, SegmentationNetwork
from tinyseg.tape import Tensor

BACKBONES = ("vgg16", "alexnet", "googlenet")
STRIDES = (32, 16, 8)
PADDINGS = ("100", "same")

CROPS = {  # the first row and column of the enlarged scores that belong to the image, by stride
    ("vgg16", "100"): {32: 19, 16: 27, 8: 31},
    ("vgg16", "same"): {32: 0, 16: 0, 8: 0},
    ("alexnet", "100"): {32: 18},
    ("alexnet", "same"): {32: 35},
    ("googlenet", "same"): {32: 1},
}
SKIP_CROPS = {"pool4": 5, "pool3": 9}  # of their scores, with padding 100
AT_ONCE_FACTORS = {"pool4": 0.01, "pool3": 0.0001}


class FCN(SegmentationNetwork):
    """See the top of this file. Takes any image from 1 x 1 pixel on (on GoogLeNet, 31 x 31).

    backbone          "vgg16", "alexnet" or "googlenet"
    stride            of the finest map that is scored: 32, 16 or 8 (16 and 8 with vgg16)
    at_once           fixed factors before the scorers of the finer maps, to train FCN-8s without stages
    padding           "100" or "same"
    learn_upsampling  learn the transposed convolutions that enlarge twice
    width             multiplies all channels
    dropout           rate behind fc6 and fc7
    rng               draws the initial weights
    """

    align_corners = False  # a bilinear kernel of twice the stride does the same
    paper_rates = LearningRates(bias=2.0)
    classifier_names = (("classifier.0", "fc6"), ("classifier.3", "fc7"))  # of VGG-16

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        backbone: Literal["vgg16", "alexnet", "googlenet"] = "vgg16",
        stride: int = 8,
        at_once: bool = False,
        padding: Literal["100", "same"] = "100",
        learn_upsampling: bool = False,
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        _check(in_channels, classes, backbone, stride, padding, width)
        self.in_channels, self.classes = in_channels, classes
        self.backbone, self.stride, self.at_once, self.padding = backbone, stride, at_once, padding
        self.trunk = _trunk(backbone, in_channels, padding, width, rng)
        channels = self.trunk.stage_channels[self.trunk.last_stage]

        self.fc6 = self.fc7 = None
        if backbone != "googlenet":
            hidden = scaled(4096, width)
            side = self.trunk.pooled_side
            fc6_padding = {"100": 0, "same": (side // 2, (side - 1) // 2) * 2}[padding]
            self.fc6 = nn.Conv2d(channels, hidden, side, padding=fc6_padding, rng=rng)
            self.dropout6 = nn.Dropout(dropout, rng=rng)
            self.fc7 = nn.Conv2d(hidden, hidden, 1, rng=rng)
            self.dropout7 = nn.Dropout(dropout, rng=rng)
            channels = hidden

        def enlarge(factor: int, *, kernel: int = 0, learned: bool = False) -> nn.ConvTranspose2d:
            own = factor // 2 if backbone == "vgg16" and padding == "same" else 0
            return _bilinear(classes, kernel or 2 * factor, factor, padding=own, learned=learned)

        def scorer(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, classes, 1, init=nn.init.zeros())

        self.score_fr = scorer(channels)
        if stride == 32:
            self.upscore = enlarge(32, kernel=63 if backbone == "alexnet" else 64)
        else:
            self.upscore2 = enlarge(2, learned=learn_upsampling)
            self.score_pool4 = scorer(self.trunk.stage_channels["pool4"])
        if stride == 16:
            self.upscore16 = enlarge(16)
        elif stride == 8:
            self.upscore_pool4 = enlarge(2, learned=learn_upsampling)
            self.score_pool3 = scorer(self.trunk.stage_channels["pool3"])
            self.upscore8 = enlarge(8)

    def forward(self, x: Input) -> Tensor:
        size = x.shape[1:3]
        maps = self.trunk.stages(x)
        top = maps[self.trunk.last_stage]
        if self.fc6 and self.fc7:
            top = self.dropout6(F.relu(self.fc6(top)))
            top = self.dropout7(F.relu(self.fc7(top)))
        scores = self.score_fr(top)
        if self.stride == 32:
            scores = self.upscore(scores)
        else:
            scores = self._add(self.upscore2(scores), self.score_pool4, maps, "pool4")
        if self.stride == 16:
            scores = self.upscore16(scores)
        elif self.stride == 8:
            scores = self._add(self.upscore_pool4(scores), self.score_pool3, maps, "pool3")
            scores = self.upscore8(scores)
        first = CROPS[self.backbone, self.padding][self.stride]
        return F.crop(scores, size=size, offset=(first, first))

    def _add(self, enlarged: Tensor, scorer: nn.Conv2d, maps: dict[str, Tensor], name: str) -> Tensor:
        """The sum of the enlarged scores and those of a finer map, where both look at the same pixels."""
        fine = maps[name]
        if self.at_once:
            fine = F.mul(fine, AT_ONCE_FACTORS[name])
        scores = scorer(fine)
        if self.padding == "100":
            first = SKIP_CROPS[name]
            scores = F.crop(scores, size=enlarged.shape[1:3], offset=(first, first))
        else:
            enlarged = F.crop(enlarged, size=scores.shape[1:3], offset=(0, 0))
        return F.add(enlarged, scores)

    def head_parts(self) -> list[nn.Module]:
        """The layers that no classifier has: the scorers, and what enlarges their maps."""
        return [part for name, part in self.named_children() if name.startswith(("score_", "upscore"))]

    # ------------------------------------------------------------------------------------------- where it starts

    def start_from_classifier(self, classifier: Classifier) -> None:
        """Take over the weights of a classifier of this backbone: its trunk, and fc6 and fc7 as convolutions."""
        trunk = classifier.trunk()
        connected = [] if classifier.classes is None else classifier.fully_connected()
        layers = [layer for layer in connected if isinstance(layer, nn.Linear)][:-1]
        ours = [layer for layer in (self.fc6, self.fc7) if layer is not None]
        fits = len(layers) == len(ours) and all(
            theirs.weight.data.size == mine.weight.data.size for theirs, mine in zip(layers, ours, strict=True)
        )
        if type(trunk) is not type(self.trunk) or not fits:
            raise ValueError(
                f"FCN.start_from_classifier: this is an FCN on {self.backbone}, and the classifier a "
                f"{type(classifier).__name__} with hidden fully connected layers of the "
                f"shapes {[layer.weight.shape for layer in layers]}; it must be a {self.backbone} with the same "
                "width and a number of classes"
            )
        self.trunk.load_state_dict(trunk.state_dict())
        for theirs, mine in zip(layers, ours, strict=True):
            # A row for each pixel and channel of the map, in the order in which a kernel stores them.
            mine.weight.data = theirs.weight.data.reshape(mine.weight.shape).astype(mine.weight.data.dtype)
            if mine.bias is not None and theirs.bias is not None:
                mine.bias.data = theirs.bias.data.astype(mine.bias.data.dtype)

    def start_from(self, coarser: "FCN") -> None:
        """Take over all that a coarser FCN has learned; the scorers that it does not have stay as they are."""
        if not isinstance(coarser, FCN) or coarser.stride < self.stride or coarser.backbone != self.backbone:
            described = (
                f"FCN-{coarser.stride}s on {coarser.backbone}" if isinstance(coarser, FCN) else repr(coarser)
            )
            raise ValueError(
                f"FCN.start_from: FCN-{self.stride}s on {self.backbone} starts from a coarser one on the same "
                f"backbone (32s, then 16s, then 8s), got {described}"
            )
        known = {name: value.data for name, value in coarser.named_parameters() if value.requires_grad}
        state = self.state_dict()
        self.load_state_dict(state | {name: value for name, value in known.items() if name in state})


def _trunk(backbone: str, in_channels: int, padding: str, width: float, rng: np.random.Generator) -> Classifier:
    if backbone == "vgg16":
        first = {"100": 100, "same": 1}[padding]
        return VGG(in_channels, None, ceil_mode=True, first_padding=first, width=width, rng=rng)
    if backbone == "alexnet":
        first = {"100": 100, "same": 21}[padding]
        return AlexNet(in_channels, None, variant="caffenet", first_padding=first, width=width, rng=rng)
    return GoogLeNet(in_channels, None, variant="caffe", width=width, rng=rng)


def _bilinear(classes: int, kernel: int, factor: int, *, padding: int, learned: bool) -> nn.ConvTranspose2d:
    """Enlarges each class's scores by interpolation; `learned`, that is only where it starts."""
    layer = nn.ConvTranspose2d(
        classes,
        classes,
        kernel,
        stride=factor,
        padding=padding,
        groups=1 if learned else classes,
        bias=False,
        init=nn.init.bilinear(),
    )
    layer.weight.requires_grad = learned
    return layer


def _check(in_channels: int, classes: int, backbone: str, stride: int, padding: str, width: float) -> None:
    for name, value in (("in_channels", in_channels), ("classes", classes)):
        if value < 1:
            raise ValueError(f"FCN: {name} must be at least 1, got {value}")
    for name, value, known in (
        ("backbone", backbone, BACKBONES),
        ("stride", stride, STRIDES),
        ("padding", padding, PADDINGS),
    ):
        if value not in known:
            raise ValueError(f"FCN: {name} must be one of {', '.join(map(str, known))}, got {value!r}")
    if (backbone, padding) not in CROPS:
        raise ValueError(f'FCN: on {backbone} the padding must be "same", got {padding!r}: no other was published')
    if stride not in CROPS[backbone, padding]:
        raise ValueError(
            f"FCN: stride {stride} needs the maps pool4 and pool3 of vgg16; on {backbone} the stride is 32"
        )
    if not width > 0:
        raise ValueError(f"FCN: width must be positive, got {width}; 1 is the paper's, 0.25 a quarter of it")
