r"""GoogLeNet: modules that look at a map with windows of several sizes at once.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke & Rabinovich, "Going deeper with convolutions", CVPR
2015, table 1 and figure 2b. For an image of 224 x 224 pixels:

    layer         size    1x1   3x3         5x5        pool   channels
    conv1          112    7x7, stride 2                             64
    max pool        56    3x3, stride 2
    conv2           56    1x1                                       64
    conv3           56    3x3                                      192
    max pool        28    3x3, stride 2
    inception3a     28     64    96 -> 128   16 ->  32    32       256
    inception3b     28    128   128 -> 192   32 ->  96    64       480
    max pool        14    3x3, stride 2
    inception4a     14    192    96 -> 208   16 ->  48    64       512   aux1 reads it
    inception4b     14    160   112 -> 224   24 ->  64    64       512
    inception4c     14    128   128 -> 256   24 ->  64    64       512
    inception4d     14    112   144 -> 288   32 ->  64    64       528   aux2 reads it
    inception4e     14    256   160 -> 320   32 -> 128   128       832
    max pool         7    3x3, stride 2
    inception5a      7    256   160 -> 320   32 -> 128   128       832
    inception5b      7    384   192 -> 384   48 -> 128   128      1024
                     1    average, dropout, fully connected       1000

    a module:         x
          .-------.---+---.----------.
          |      1x1     1x1    3x3 max pool
         1x1     3x3     5x5        1x1
          '-------'---+---'----------'
                   concat

    variant         convolutions                          parameters (with two auxiliary heads)
    "caffe"         biases, no batch normalisation,        6,998,552  (13,378,280)    the default
                    local response normalisation
                    after the first pool and conv3
    "torchvision"   batch normalisation, no biases;        6,624,904  (13,004,888)
                    3x3 in place of 5x5
    "batch_norm"    batch normalisation, no biases         7,005,832

A ReLU follows each convolution. The auxiliary heads, `auxiliary=True`, are classifiers on maps half way, whose
losses (weight 0.3 each) helped the gradient on its way down: `forward_all` returns their logits too.

Stages: conv1, conv3, inception3b, inception4e and inception5b, with 64, 192, 480, 832 and 1024 channels and the
strides 2, 4, 8, 16 and 32. Names of weights are torchvision's: inception3a.branch2.1.conv.weight.

Differences from the paper
    * The branch "5x5" of "torchvision" is 3x3, a slip that its published weights depend on.
    * All poolings round up, as in Caffe: 112, 56, 28, 14 and 7. The last one of "torchvision" is 2x2.
    * Dropout before the last layer is 0.4, 0.2 in "torchvision". Images of other sizes than 224 are averaged over
      the whole last map. The auxiliary heads average 5x5 windows with stride 3, then to 4 x 4 if that is not what
      came out; "torchvision" averages to 4 x 4 at once.
    * Weights start as N(0, 2 / inputs), biases as 0; Caffe's are Glorot's, and 0.2.
    * `width` multiplies all channels.
"""

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.classifier import Classifier
from tinyseg.tape import Tensor

VARIANTS = ("caffe", "torchvision", "batch_norm")
MODULES = {  # 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, pool
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


class ConvReLU(nn.Module):
    """A convolution, batch normalisation or not, and a ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        variant: str,
        rng: np.random.Generator,
    ):
        normalised = variant != "caffe"
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            bias=not normalised,
            rng=rng,
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, relu=True) if normalised else None

    def forward(self, x: Input) -> Tensor:
        x = self.conv(x)
        return self.bn(x) if self.bn else F.relu(x)


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], *, variant: str, rng: np.random.Generator):
        options = {"variant": variant, "rng": rng}
        c1, c3_reduced, c3, c5_reduced, c5, c_pool = channels
        self.branch1 = ConvReLU(in_channels, c1, 1, **options)
        self.branch2 = nn.Sequential(
            ConvReLU(in_channels, c3_reduced, 1, **options), ConvReLU(c3_reduced, c3, 3, **options)
        )
        five = 3 if variant == "torchvision" else 5
        self.branch3 = nn.Sequential(
            ConvReLU(in_channels, c5_reduced, 1, **options), ConvReLU(c5_reduced, c5, five, **options)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), ConvReLU(in_channels, c_pool, 1, **options)
        )
        self.out_channels = c1 + c3 + c5 + c_pool

    def forward(self, x: Input) -> Tensor:
        return F.concat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)])


class AuxiliaryHead(nn.Module):
    """A classifier on a map half way, (N, h, w, in_channels) -> (N, classes)."""

    def __init__(self, in_channels: int, classes: int, *, variant: str, width: float, rng: np.random.Generator):
        reduced, hidden = classifier.scaled(128, width), classifier.scaled(1024, width)
        self.windows = variant != "torchvision"
        self.conv = ConvReLU(in_channels, reduced, 1, variant=variant, rng=rng)
        self.fc1 = nn.Linear(4 * 4 * reduced, hidden, rng=rng)
        self.dropout = nn.Dropout(0.7, rng=rng)
        self.fc2 = nn.Linear(hidden, classes, init=classifier.LINEAR_UNIFORM, rng=rng)

    def forward(self, x: Input) -> Tensor:
        if self.windows and min(x.shape[1:3]) >= 5:
            x = F.avg_pool2d(x, 5, stride=3)
        if x.shape[1:3] != (4, 4):
            x = F.adaptive_avg_pool2d(x, 4)
        x = self.conv(x)
        x = F.relu(self.fc1(F.reshape(x, (x.shape[0], -1))))
        return self.fc2(self.dropout(x))


class GoogLeNet(Classifier):
    """See the top of this file.

    in_channels  of the image
    classes      of the classifier, or None for the trunk alone
    variant      "caffe", "torchvision" or "batch_norm"
    auxiliary    have the two auxiliary heads
    width        multiplies all channels
    dropout      rate before the last layer; by default 0.4, and 0.2 in "torchvision"
    rng          draws the initial weights
    """

    heads = ("fc", "dropout", "aux1", "aux2")
    last_stage = "inception5b"

    def __init__(
        self,
        in_channels: int = 3,
        classes: int | None = 1000,
        *,
        variant: str = "caffe",
        auxiliary: bool = False,
        width: float = 1.0,
        dropout: float | None = None,
        rng: np.random.Generator,
    ):
        classifier.check_settings("GoogLeNet", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("GoogLeNet", "variant", variant, VARIANTS)
        self.in_channels, self.classes, self.variant = in_channels, classes, variant
        # The last pooling needs a pixel of two, in "torchvision", or two of three.
        self.smallest_side = 15 if variant == "torchvision" else 31
        options = {"variant": variant, "rng": rng}

        c1, c2, c3 = (classifier.scaled(channels, width) for channels in (64, 64, 192))
        self.conv1 = ConvReLU(in_channels, c1, 7, stride=2, **options)
        self.conv2 = ConvReLU(c1, c2, 1, **options)
        self.conv3 = ConvReLU(c2, c3, 3, **options)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.last_pool = nn.MaxPool2d(2, stride=2, ceil_mode=True) if variant == "torchvision" else self.pool
        self.norm = nn.LocalResponseNorm() if variant == "caffe" else nn.Identity()

        given, out = c3, {}
        for name, channels in MODULES.items():
            module = Inception(given, tuple(classifier.scaled(number, width) for number in channels), **options)
            setattr(self, name, module)
            given = out[name] = module.out_channels
        self.stage_channels = {
            "conv1": c1,
            "conv3": c3,
            "inception3b": out["inception3b"],
            "inception4e": out["inception4e"],
            "inception5b": out["inception5b"],
        }
        self.stage_strides = dict(zip(self.stage_channels, (2, 4, 8, 16, 32), strict=True))

        self.fc = self.dropout = self.aux1 = self.aux2 = None
        if classes is not None:
            if auxiliary:
                self.aux1 = AuxiliaryHead(out["inception4a"], classes, width=width, **options)
                self.aux2 = AuxiliaryHead(out["inception4d"], classes, width=width, **options)
            rate = (0.2 if variant == "torchvision" else 0.4) if dropout is None else dropout
            self.dropout = nn.Dropout(rate, rng=rng)
            self.fc = nn.Linear(given, classes, init=classifier.LINEAR_UNIFORM, rng=rng)

    def stages(self, x: Input) -> dict[str, Tensor]:
        maps = self._all_maps(x)
        return {name: maps[name] for name in self.stage_channels}

    def forward_all(self, x: Input) -> tuple[Tensor, Tensor, Tensor]:
        """The logits, and those of the auxiliary heads."""
        if self.aux1 is None or self.aux2 is None:
            raise ValueError("GoogLeNet: there are no auxiliary heads; make it with auxiliary=True")
        maps = self._all_maps(x)
        return self.classify(maps[self.last_stage]), self.aux1(maps["inception4a"]), self.aux2(maps["inception4d"])

    def fully_connected(self) -> list[nn.Module]:
        return [layer for layer in (self.dropout, self.fc) if layer is not None]

    def _all_maps(self, x: Input) -> dict[str, Tensor]:
        self.check_image(x)
        maps = {}
        x = maps["conv1"] = self.conv1(x)
        x = self.norm(self.pool(x))
        x = maps["conv3"] = self.conv3(self.conv2(x))
        x = self.pool(self.norm(x))
        for name in MODULES:
            if name == "inception4a":
                x = self.pool(x)
            elif name == "inception5a":
                x = self.last_pool(x)
            x = maps[name] = getattr(self, name)(x)
        return maps
