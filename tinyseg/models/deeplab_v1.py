r"""DeepLab v1: VGG-16 with fewer strides and with holes in its kernels, ready for a dense CRF.

Chen, Papandreou, Kokkinos, Murphy & Yuille, "Semantic image segmentation with deep convolutional nets and fully
connected CRFs", ICLR 2015, section 3 and table 2. For an image of 321 x 321 pixels:

    321  3x3, 3x3          64
         pool1                 -> 161
    161  3x3, 3x3         128
         pool2                 ->  81
     81  3x3, 3x3, 3x3    256
         pool3                 ->  41
     41  3x3, 3x3, 3x3    512
         pool4, stride 1       ->  41
     41  3x3, 3x3, 3x3    512      rate 2: the pixels that they would have seen behind a stride
         pool5, stride 1       ->  41
     41  fc6              1024     3x3, rate 12; dropout
     41  fc7              1024     1x1; dropout
     41  fc8              classes  1x1 -- x8 -- logits 321

    network              fc6: kernel, rate, channels    field of view   parameters, 21 classes
    deeplab_v1_7x7       7x7   4   4096                 224             134,346,581
    deeplab_v1_4x4       4x4   4   4096                 128              65,140,565
    deeplab_v1_largefov  3x3  12   1024                 224              20,505,429
    deeplab_v1_msc       the same, and multi-scale                       21,711,445

The 7x7 kernel is VGG's own fc6, a fully connected layer on 7 x 7 pixels. 4x4 takes a part of its weights, and
3x3 with rate 12 sees as wide a field as 7x7 with a seventh of the network's parameters. (fc6_rate=8 for a 4x4
kernel is in the paper's table, too: 224 pixels.)

Multi-scale features (`multi_scale`): the image and each of pool1 to pool4 go through 128 3x3 and 128 1x1
convolutions, and what comes out, 640 channels, stands beside that of fc7 before fc8. Only these branches and fc8
are trained (`train_only_branches`), on top of a trained network.

The paper trains on labels shrunk by 8 (`shrunk_labels`, deeplab.py), and sharpens the answer with a dense CRF,
which works on probabilities and the image (tinyseg.crf).

Differences from the paper, or choices where paper and release differ
    * As released, poolings are 3x3 with padding 1 instead of 2x2, and an average pooling (3x3, stride 1) stands
      behind pool5; `average_pool=False` leaves it out.
    * How the branches' maps come to one size is not in the paper. Here their first convolution has the stride 8,
      4, 2, 1, 1, which makes 41 x 41 of each. They have ReLUs and no dropout.
    * The released networks start from a VGG-16 trained on ImageNet. Initial weights are N(0, 2 / inputs), and
      N(0, 0.01^2) in fc8, as released.
    * An image of any size is padded to a multiple of 8 and 1 (deeplab.py). `width` multiplies all channels.
"""

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.vgg import VGGLargeFOV
from tinyseg.models.deeplab import DeepLab, FullyConnected, check_settings
from tinyseg.models.network import LearningRates
from tinyseg.tape import Tensor

POOLS = ("pool1", "pool2", "pool3", "pool4")


class DeepLabV1(DeepLab):
    """See the top of this file.

    fc6_kernel     side of fc6's kernel
    fc6_rate       its dilation
    fc_channels    of fc6 and fc7
    multi_scale    have branches from the image and pool1 to pool4
    average_pool   have the released average pooling behind pool5
    shrunk_labels  train on every 8th pixel, as the paper does
    width          multiplies all channels
    dropout        rate behind fc6 and fc7
    rng            draws the initial weights
    """

    output_stride = 8
    paper_rates = LearningRates(head=10.0, bias=2.0)
    classifier_names = (  # of VGG-16: for the 7x7 kernel
        ("classifier.0", "fully_connected.fc6"),
        ("classifier.3", "fully_connected.fc7"),
    )

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        fc6_kernel: int = 3,
        fc6_rate: int = 12,
        fc_channels: int = 1024,
        multi_scale: bool = False,
        average_pool: bool = True,
        shrunk_labels: bool = False,
        width: float = 1.0,
        dropout: float = 0.5,
        rng: np.random.Generator,
    ):
        check_settings("DeepLabV1", in_channels=in_channels, classes=classes, width=width)
        if min(fc6_kernel, fc6_rate, fc_channels) < 1 or (fc6_kernel - 1) * fc6_rate % 2:
            raise ValueError(
                f"DeepLabV1: fc6_kernel={fc6_kernel}, fc6_rate={fc6_rate} and fc_channels={fc_channels} must be "
                "positive, and a kernel with an even side needs an even rate, to have as much padding on each side"
            )
        self.in_channels, self.classes, self.shrunk_labels = in_channels, classes, shrunk_labels
        self.trunk = VGGLargeFOV(in_channels, None, average_pool=average_pool, width=width, rng=rng)
        channels = self.trunk.stage_channels
        self.branches = []
        if multi_scale:
            inputs = {"image": (in_channels, 8)}
            inputs |= {pool: (channels[pool], 8 // self.trunk.stage_strides[pool]) for pool in POOLS}
            branch_channels = classifier.scaled(128, width)
            self.branches = [Branch(count, branch_channels, stride, rng=rng) for count, stride in inputs.values()]
        self.fully_connected = FullyConnected(
            channels[self.trunk.last_stage],
            classifier.scaled(fc_channels, width),
            classes,
            kernel=fc6_kernel,
            rate=fc6_rate,
            beside=len(self.branches) * classifier.scaled(128, width),
            dropout=dropout,
            rng=rng,
        )

    def scores(self, x: Input) -> Tensor:
        maps = self.trunk.stages(x)
        features = self.fully_connected.features(maps[self.trunk.last_stage])
        if self.branches:
            sources = [x, *(maps[pool] for pool in POOLS)]
            beside = [branch(source) for branch, source in zip(self.branches, sources, strict=True)]
            features = F.concat([features, *beside])
        return self.fully_connected.fc8(features)

    def head_parts(self) -> list[nn.Module]:
        """The layers that no classifier has: fc8 and the branches."""
        return [self.fully_connected.fc8, *self.branches]

    def train_only_branches(self) -> None:
        """Keep all weights as they are but those of the branches and of fc8: the second stage of training."""
        if not self.branches:
            raise ValueError("DeepLabV1: there are no branches to train; make the network with multi_scale=True")
        for parameter in self.parameters():
            parameter.requires_grad = False
        for module in (*self.branches, self.fully_connected.fc8):
            for parameter in module.parameters():
                parameter.requires_grad = True


class Branch(nn.Module):
    """3x3 and 1x1 convolutions, each with ReLU, from a finer map to the grid of the scores."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, rng: np.random.Generator):
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, rng=rng)
        self.conv2 = nn.Conv2d(channels, channels, 1, rng=rng)

    def forward(self, x: Input) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))
