r"""CRF-RNN: a segmentation network and the dense CRF behind it, trained as one.

Zheng, Jayasumana, Romera-Paredes, Vineet, Su, Du, Huang & Torr, "Conditional random fields as recurrent neural
networks", ICCV 2015, figures 1 to 3.

                                     +-------------------------- T times ---------------------------+
                                     |                                                              |
    image -> network -> logits U --> softmax -> F_s Q (positions)          -> weights -+            |
      |                    |         |                                                 + -> compat -+-> X = U - ..
      |                    |         +--------> F_a Q (positions and colours) -> weights             |
      +--- colours 0 to 255 ---------------------------^                                             +-> logits X
                           +------------------------------------------------------------------------>

One iteration of mean field is filtering, a mix of the labels, and a sum; each has a gradient, and so does the
recurrence of all T of them (`tinyseg.crf.layer`). What the network is told through the CRF differs from what it is
told without: where the CRF will repair a boundary by itself the network need not bother, and where the CRF would
smooth a pole away it has to insist.

    name               network in front           parameters for C classes beyond those of the network
    crf_rnn_fcn8s      FCN-8s (`models.fcn`)       3 C²       1,323 for 21
    crf_rnn_unet       U-Net (`models.unet`), padded

The network in front is to be trained before: with random logits there is nothing to sharpen. The few weights of
the CRF may learn faster. `net.trunk` is the network in front, `net.crf` the layer (`nn.CRFRNN`):

    tinyseg train camvid --out runs/unet
    tinyseg train camvid --set model.name=crf_rnn_unet --set model.base=12 --init runs/unet --set optim.head_lr=10

    net = models.create("crf_rnn_unet", classes=11, base=12)                        # or in Python
    net.trunk.load_state_dict(trained_unet.state_dict())

Training unrolls `iterations` = 5, evaluation 10, as published. The kernels see the colours before normalisation,
which `mean` and `std` undo (values of 0 to 1 before); with augmentation, those of the augmented image, rounded to
bytes. Batches may be larger than one, and images of any size; for each a lattice is made once, and used forward
and backward.

Differences from the paper
    * Losses are means, and learning rates the usual ones. The authors' program has sums and a rate of 1e-13.
    * Their filters were those of Krähenbühl's program and run on one image at a time.
    * The kernels' weights are full matrices between labels that start diagonal, as in the authors' later programs
      (weights="diagonal" keeps them so). learn_bandwidths=True learns the bandwidths too, which they fixed.
    * Gradients do not flow through the colours into the image.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tinyseg import nn
from tinyseg.backend import Array
from tinyseg.crf import Parameters
from tinyseg.crf.features import visible_colours
from tinyseg.functional import Input
from tinyseg.models.fcn import FCN
from tinyseg.models.network import SegmentationNetwork
from tinyseg.models.unet import UNet
from tinyseg.tape import Tensor

Weights = Literal["full", "diagonal"]
Numbers = float | Sequence[float]


class CRFRNN(SegmentationNetwork):
    """Any segmentation network with a CRF behind it. See the top of this file.

    trunk      its logits are as large as its input, or as its input's middle
    mean, std  of the normalisation that images have gone through, values of 0 to 1 before: a number, or one for
               each channel; by default they have not gone through any
    others     as for `nn.CRFRNN`
    """

    def __init__(
        self,
        trunk: SegmentationNetwork,
        *,
        start: str | Parameters = "crf_rnn",
        iterations: int = 5,
        weights: Weights = "full",
        learn_bandwidths: bool = False,
        mean: Numbers | None = None,
        std: Numbers | None = None,
    ):
        self.mean, self.std = 0.0 if mean is None else mean, 1.0 if std is None else std
        for name, value in (("mean", self.mean), ("std", self.std)):
            if np.shape(value) not in ((), (trunk.in_channels,)):
                raise ValueError(
                    f"CRFRNN: {name} must be one number, or {trunk.in_channels}, one for each channel; got {value}"
                )
        self.in_channels, self.classes, self.context = trunk.in_channels, trunk.classes, trunk.context
        self.align_corners = trunk.align_corners
        self.trunk = trunk
        self.crf = nn.CRFRNN(
            trunk.classes, start=start, iterations=iterations, weights=weights, learn_bandwidths=learn_bandwidths
        )

    def forward(self, x: Input) -> Tensor:
        logits = self.trunk(x)
        return self.crf(logits, self.colours(x.data if isinstance(x, Tensor) else x, logits.shape[1:3]))

    def colours(self, images: Array, size: tuple[int, ...]) -> Array:
        """The middle (N, *size, C) of normalised images as bytes, the colours that the eye sees."""
        top, left = ((whole - part) // 2 for whole, part in zip(images.shape[1:3], size, strict=True))
        middle = images[:, top : top + size[0], left : left + size[1]]
        return visible_colours(middle, self.mean, self.std)

    def input_side(self, output_side: int) -> int:
        return self.trunk.input_side(output_side)


def crf_rnn_fcn8s(
    in_channels: int = 3,
    classes: int = 21,
    *,
    iterations: int = 5,
    start: str = "crf_rnn",
    weights: Weights = "full",
    learn_bandwidths: bool = False,
    width: float = 1.0,
    padding: Literal["100", "same"] = "100",
    mean: Numbers | None = None,
    std: Numbers | None = None,
    rng: np.random.Generator,
) -> CRFRNN:
    """The network of the paper: FCN-8s in front; `width` and `padding` are its."""
    trunk = FCN(in_channels, classes, width=width, padding=padding, rng=rng)
    options = {"start": start, "iterations": iterations, "weights": weights, "learn_bandwidths": learn_bandwidths}
    return CRFRNN(trunk, mean=mean, std=std, **options)


def crf_rnn_unet(
    in_channels: int = 3,
    classes: int = 21,
    *,
    iterations: int = 5,
    start: str = "crf_rnn",
    weights: Weights = "full",
    learn_bandwidths: bool = False,
    base: int = 64,
    depth: int = 4,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    rng: np.random.Generator,
) -> CRFRNN:
    """A U-Net with padding in front; `base` and `depth` are its."""
    trunk = UNet(in_channels, classes, base=base, depth=depth, variant="padded", rng=rng)
    options = {"start": start, "iterations": iterations, "weights": weights, "learn_bandwidths": learn_bandwidths}
    return CRFRNN(trunk, mean=mean, std=std, **options)
