r"""DeepLab v3: a dilated trunk, and dilation side by side (ASPP) or one after the other (blocks 5 to 7).

Chen, Papandreou, Schroff & Adam, "Rethinking atrous convolution for semantic image segmentation", 2017, figures 5
(head="aspp") and 3 (head="block7"). ResNet-101 with output stride 16, for 513 x 513 pixels:

    image 513 -- conv1 257 -- pool 129 -- layer1 65 -- layer2 33 -- layer3 33 -- layer4 33
                  64           64          256          512          1024         2048, rates 2 4 8
                                                                                   |
      head="aspp"     ASPP, rates 6 12 18 and image features, 256 (aspp.py)  <-----+
                       |                                                           |
                      1x1 conv, classes -- x16 -- logits 513                       |
                                                                                   |
      head="block7"   block5 -- block6 -- block7, copies of layer4's structure <---+
                      33         33        33, 2048
                      rates                 |
                      4 8 16    8 16 32    16 32 64
                                            |
                                           1x1 conv, classes -- x16 -- logits 513

Output stride. A stage that would make the map coarser than that keeps its size, and the kernels behind it are
dilated by twice the rate instead. The same weights then answer on a grid twice as fine: `set_output_stride`
changes it after training (the paper trains with 16 and evaluates with 8).

    output stride   layer3   layer4, multi-grid (1, 2, 4)   ASPP
    32              1        1 2 4                           3  6  9
    16              1        2 4  8                          6 12 18
     8              2        4 8 16                         12 24 36

Multi-grid: the three units of layer4, and of each block behind it, multiply the rate of their stage by 1, 2, 4.

    network                        parameters, 21 classes
    ResNet-50,  ASPP               39,048,533   (stem="64-64-128": 39,172,309)
    ResNet-101, ASPP               58,040,661   (stem="64-64-128": 58,164,437)
    ResNet-50,  blocks to 7        63,714,389
    ResNet-101, blocks to 7        82,706,517
    Xception-65, ASPP              53,407,813

torchvision's deeplabv3_resnet50 and deeplabv3_resnet101 (the class TorchvisionDeepLabV3) differ in many details:
output stride 8 with ASPP rates 12, 24, 36, no multi-grid, strides in the first unit of a stage, that unit with
the rate of the stage before, a 3x3 convolution behind ASPP, dropout 0.5, an auxiliary head, and logits enlarged
without align_corners. 39,638,869 and 58,630,997 parameters, 42,004,074 and 60,996,202 with the auxiliary head.

Differences from the paper, or choices where paper and release differ
    * stem="7x7" is the paper's text. Its operation counts (81.02 billion for 513 x 513) agree with the released
      code's three 3x3 convolutions, stem="64-64-128".
    * style="slim", as released: the stride of a stage sits in the last unit of the stage before, so that the sizes
      of layer1 and layer2 above are half of those in ResNet's paper. The others are settings too; in style
      "torchvision" all units of a dilated stage take the rate of the table.
    * No code was released for blocks 5 to 7. Here all of their units have identity shortcuts, as the shapes
      permit, and strides sit where `style` says.
    * Logits are enlarged with align_corners, as in the release, and images padded to the grid (deeplab.py).
    * The differences of ASPP (aspp.py).
    * `width` multiplies all channels; any ResNet, and Xception, can be the trunk.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models import backbones
from tinyseg.models.aspp import ASPP
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.resnet import Place, ResNet
from tinyseg.models.backbones.xception import Xception
from tinyseg.models.deeplab import CLASSIFIER_INIT, DeepLab, check_settings
from tinyseg.models.fcn_resnet import DilatedResNet
from tinyseg.tape import Tensor

HEADS = ("aspp", "block4", "block5", "block6", "block7")
MULTI_GRID = (1, 2, 4)


class DeepLabV3(DeepLab):
    """See the top of this file.

    backbone       "resnet50", "resnet101", ... or "xception65", ...
    output_stride  32, 16 or 8; with blocks behind layer4 also 64, and so on up to 256 for head="block7"
    head           "aspp", or the last block: "block4" (none but layer4) to "block7"
    rates          of ASPP, for output stride 16
    image_pooling  have ASPP's branch of image features
    multi_grid     factors for the units of layer4 and of each block behind it; by default 1, 2, 4 in a ResNet, of
                   which ResNet-18 and 34 take as many as they have units, and 1, 1, 1 in Xception
    stem, style    of a ResNet: see backbones/resnet.py
    width          multiplies all channels
    dropout        rate behind ASPP
    rng            draws the initial weights
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        backbone: str = "resnet101",
        output_stride: int = 16,
        head: str = "aspp",
        rates: Sequence[int] = (6, 12, 18),
        image_pooling: bool = True,
        multi_grid: Sequence[int] | None = None,
        stem: str = "7x7",
        style: str = "slim",
        width: float = 1.0,
        dropout: float = 0.1,
        rng: np.random.Generator,
    ):
        check_settings("DeepLabV3", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("DeepLabV3", "head", head, HEADS)
        self.in_channels, self.classes, self.head, self.rates = in_channels, classes, head, tuple(rates)
        settings = {"resnet": {"stem": stem, "style": style}}
        self.trunk = make_trunk("DeepLabV3", backbone, in_channels, settings, width=width, rng=rng)
        self.multi_grid = multi_grid_for(self.trunk, multi_grid)
        channels = self.trunk.stage_channels[self.trunk.last_stage]

        self.blocks, self.aspp = [], None
        if head == "aspp":
            out_channels = classifier.scaled(256, width)
            self.aspp = ASPP(
                channels, out_channels, rates=rates, image_pooling=image_pooling, dropout=dropout, rng=rng
            )
            channels = out_channels
        elif head != "block4":
            if not isinstance(self.trunk, ResNet):
                raise ValueError(
                    f"DeepLabV3: head={head!r} repeats the last stage of a ResNet, and backbone={backbone!r} has "
                    'none; use head="aspp"'
                )
            self.blocks = [copy_of_layer4(self.trunk, rng=rng) for _ in HEADS[2 : HEADS.index(head) + 1]]
        self.classifier = nn.Conv2d(channels, classes, 1, init=CLASSIFIER_INIT, rng=rng)
        self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        """Trade strides for dilations, or back. Weights stay as they are, so a trained network may be changed."""
        strides = (8, *(2**power for power in range(4, 6 + len(self.blocks))))
        classifier.check_choice("DeepLabV3", "output_stride", output_stride, strides[::-1])
        set_trunk_stride(self.trunk, min(output_stride, 32), self.multi_grid)
        if self.aspp is not None:
            self.aspp.set_rates(scaled_rates(self.rates, output_stride))
        if self.blocks:
            self._place_blocks(output_stride)
        self.output_stride = output_stride

    def _place_blocks(self, output_stride: int) -> None:
        """Go on behind layer4 as ResNet.set_dilation did up to there: each block halves the map once more, or
        doubles the rate instead. The unit that does is the block's first; in style "slim", the last one before."""
        assert isinstance(self.trunk, ResNet) and self.multi_grid is not None
        slim = self.trunk.style == "slim"
        layers = [self.trunk.layer4, *self.blocks]
        stride, rate = min(output_stride, 32), max(32 // output_stride, 1)
        for number, layer in enumerate(layers):
            for index, unit in enumerate(layer):
                halves = index == len(layer) - 1 and layer is not layers[-1] if slim else number > 0 and index == 0
                if number == 0 and not halves:
                    continue  # the trunk has placed it
                step, before = 1, rate
                if halves and stride < output_stride:
                    step = 2
                    stride *= 2
                elif halves:
                    rate *= 2
                    before = rate if self.trunk.first_rate == "new" else before
                factor = self.multi_grid[index]
                unit.place(Place(step, factor * before, factor * rate))

    def scores(self, x: Input) -> Tensor:
        x = self.trunk.stages(x)[self.trunk.last_stage]
        for block in self.blocks:
            x = block(x)
        if self.aspp is not None:
            x = self.aspp(x)
        return self.classifier(x)


class TorchvisionDeepLabV3(DilatedResNet):
    """torchvision's deeplabv3_resnet50 and deeplabv3_resnet101, with its names of weights.

    See the top of this file, and fcn_resnet.py for the settings.
    """

    def make_head(self, in_channels: int, width: float, rng: np.random.Generator) -> nn.Sequential:
        channels = classifier.scaled(256, width)
        return nn.Sequential(
            ASPP(in_channels, channels, rates=(12, 24, 36), dropout=0.5, rng=rng),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False, rng=rng),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, self.classes, 1, rng=rng),
        )


# ---------------------------------------------------------------------------- what DeepLab v3 and v3+ do to trunks


def make_trunk(
    model: str,
    backbone: str,
    in_channels: int,
    settings: Mapping[str, Mapping[str, object]],
    *,
    width: float,
    rng: np.random.Generator,
) -> ResNet | Xception:
    """The backbone called `backbone`, without classifier. `settings` are by the kind: "resnet", "xception"."""
    dilatable = [name for name in sorted(backbones.BACKBONES) if name.startswith(("resnet", "xception"))]
    classifier.check_choice(model, "backbone", backbone, dilatable)
    own = settings.get(backbone.rstrip("0123456789"), {})
    trunk = backbones.create(backbone, in_channels, None, width=width, rng=rng, **own)
    assert isinstance(trunk, ResNet | Xception)
    return trunk


def multi_grid_for(trunk: ResNet | Xception, multi_grid: Sequence[int] | None) -> tuple[int, ...] | None:
    """The factors to use: those asked for, or the paper's."""
    if multi_grid is None and isinstance(trunk, ResNet):
        return MULTI_GRID[: len(trunk.layer4)]
    return None if multi_grid is None else tuple(multi_grid)


def set_trunk_stride(trunk: ResNet | Xception, output_stride: int, multi_grid: Sequence[int] | None) -> None:
    if isinstance(trunk, ResNet) and trunk.style == "torchvision":
        # A unit that lost its stride is dilated by the new rate; in the other styles it is anyway, or has no 3x3
        # kernel behind the stride.
        trunk.set_dilation(output_stride, multi_grid=multi_grid, first_rate="new")
    else:
        trunk.set_dilation(output_stride, multi_grid=multi_grid)


def scaled_rates(rates: Sequence[int], output_stride: int) -> list[int]:
    """ASPP's rates for another output stride than 16: they mean the same distance in the image."""
    return [max(1, rate * 16 // output_stride) for rate in rates]


def copy_of_layer4(trunk: ResNet, *, rng: np.random.Generator) -> nn.Sequential:
    """As many units as layer4, all with identity shortcuts. 13,387,776 parameters for ResNet-50 and 101."""
    block = type(trunk.layer4[0])
    channels = trunk.stage_channels["layer4"]
    units = [block(channels, channels // block.expansion, style=trunk.style, rng=rng) for _ in trunk.layer4]
    return nn.Sequential(*units)
