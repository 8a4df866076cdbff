r"""DeepLab v3+: DeepLab v3 as an encoder, and a small decoder that looks at a finer map.

Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
segmentation", ECCV 2018, figure 2. Xception-65 with output stride 16, for 513 x 513 pixels:

    image 513 -- entry flow ----------------- middle and exit flow -- 33, 2048
                  |                                                    |
                  | 129, 256 (stride 4)                               ASPP, rates 6 12 18, image features (aspp.py)
                  |                                                    |
                 1x1 conv                                              | 33, 256
                  |                                                    |
                  | 129, 48                                           x4
                  |                                                    | 129, 256
                  +---------------------- concat ----------------------+
                                            | 129, 304
                                           3x3 conv, 256
                                           3x3 conv, 256
                                           1x1 conv, classes -- x4 -- logits 513

Batch normalisation and ReLU follow each convolution but the last. With `separable`, each 3x3 convolution of ASPP
and decoder works on each channel for itself first, and then across the channels, as all those of Xception do.
`set_output_stride` changes the encoder's stride after training: trained with 16, evaluated with 8 in the paper.

    network                                      parameters, 21 classes
    ResNet-101                                   59,344,309   (stem="64-64-128": 59,468,085)
    ResNet-101, separable ASPP and decoder       45,688,261
    ResNet-50                                    40,352,181   (stem="64-64-128": 40,475,957)
    Xception-65                                  54,711,461
    Xception-65, separable ASPP and decoder      41,055,413   the released network
    Xception-71, separable ASPP and decoder      43,477,837

Differences from the paper, or choices where paper and release differ
    * The finer map. The paper says of ResNet, the last map before the third stride; the released code takes the
      last correction there, before it is added (256 channels). So does this one, with style="slim"; with the
      other styles it is the whole of layer1's output, as in most ports. Of Xception it is as released: see
      backbones/xception.py.
    * The released Xception has no ReLU between the two steps of a separable convolution, against the paper's text;
      `depthwise_relu=True` is the paper. Those of ASPP and decoder have it in both.
    * multi_grid: 1, 2, 4 in a ResNet, as in DeepLab v3; none in Xception, where the paper found no use in it.
    * Stem, style, align_corners, padding to the grid: as in deeplab_v3.py. Separable convolutions start from
      N(0, 2 / inputs) instead of truncated normal distributions of a fixed width; normalisations follow them.
    * `width` multiplies all channels.
"""

from collections.abc import Sequence

import numpy as np

from tinyseg import functional as F
from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.models.aspp import ASPP, conv1x1, conv3x3
from tinyseg.models.backbones import classifier
from tinyseg.models.deeplab import CLASSIFIER_INIT, DeepLab, check_settings
from tinyseg.models.deeplab_v3 import make_trunk, multi_grid_for, scaled_rates, set_trunk_stride
from tinyseg.tape import Tensor

OUTPUT_STRIDES = (32, 16, 8)


class DeepLabV3Plus(DeepLab):
    """See the top of this file.

    backbone        "resnet101", "xception65", ...
    output_stride   of the encoder: 32, 16 or 8
    separable       3x3 convolutions of ASPP and decoder in two steps
    rates           of ASPP, for output stride 16
    image_pooling   have ASPP's branch of image features
    multi_grid      factors of the trunk's last rates
    low_channels    that the finer map is reduced to
    stem, style     of a ResNet: see backbones/resnet.py
    depthwise_relu  a ReLU between the steps of Xception's separable convolutions
    width           multiplies all channels
    dropout         rate behind ASPP
    rng             draws the initial weights
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 21,
        *,
        backbone: str = "xception65",
        output_stride: int = 16,
        separable: bool = True,
        rates: Sequence[int] = (6, 12, 18),
        image_pooling: bool = True,
        multi_grid: Sequence[int] | None = None,
        low_channels: int = 48,
        stem: str = "7x7",
        style: str = "slim",
        depthwise_relu: bool = False,
        width: float = 1.0,
        dropout: float = 0.1,
        rng: np.random.Generator,
    ):
        check_settings("DeepLabV3Plus", in_channels=in_channels, classes=classes, width=width)
        self.in_channels, self.classes, self.rates = in_channels, classes, tuple(rates)
        settings = {
            "resnet": {"stem": stem, "style": style},
            "xception": {"depthwise_relu": depthwise_relu},
        }
        self.trunk = make_trunk("DeepLabV3Plus", backbone, in_channels, settings, width=width, rng=rng)
        self.multi_grid = multi_grid_for(self.trunk, multi_grid)

        channels, low_channels = classifier.scaled(256, width), classifier.scaled(low_channels, width)
        self.aspp = ASPP(
            self.trunk.stage_channels[self.trunk.last_stage],
            channels,
            rates=rates,
            image_pooling=image_pooling,
            separable=separable,
            dropout=dropout,
            rng=rng,
        )
        self.low_level = conv1x1(self.trunk.stage_channels["low_level"], low_channels, rng=rng)
        self.decoder = nn.Sequential(
            conv3x3(channels + low_channels, channels, separable=separable, rng=rng),
            conv3x3(channels, channels, separable=separable, rng=rng),
        )
        self.classifier = nn.Conv2d(channels, classes, 1, init=CLASSIFIER_INIT, rng=rng)
        self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        """Trade strides for dilations, or back. Weights stay as they are, so a trained network may be changed."""
        classifier.check_choice("DeepLabV3Plus", "output_stride", output_stride, OUTPUT_STRIDES)
        set_trunk_stride(self.trunk, output_stride, self.multi_grid)
        self.aspp.set_rates(scaled_rates(self.rates, output_stride))
        self.output_stride = output_stride

    def scores(self, x: Input) -> Tensor:
        """Scores for every fourth pixel of the image."""
        maps = self.trunk.stages(x)
        low = self.low_level(maps["low_level"])
        high = F.resize(self.aspp(maps[self.trunk.last_stage]), low.shape[1:3], align_corners=True)
        return self.classifier(self.decoder(F.concat([high, low])))
