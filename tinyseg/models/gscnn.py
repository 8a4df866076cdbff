r"""Gated-SCNN: a second, thin stream that knows about shapes only, and gates that let it see what matters to it.

Takikawa, Acuna, Jampani & Fidler, "Gated-SCNN: Gated shape CNNs for semantic segmentation", ICCV 2019, figures 2
and 3. On WideResNet-38 (backbones/wide_resnet38.py), for 720 x 720 pixels:

    regular stream
    image 720 -- mod1 720 -- mod2 360 -- mod3 180 -- mod4 90 -- mod5 90 -- mod6 90 -- mod7 90 --> edge ASPP 90
                  64 |        128 |       256 |      512 |      1024       2048      4096 |           256 |     ^
                     |            |           |          |                                |               x4    |
                     |            |           |1         |1                               |1              |     |
    shape stream     |            |          x4         x8                               x8               |     |
    720, channels   64 -- block - 1x1 - 32 - gate - block - 1x1 - 16 - gate - block - 1x1 - 8 - gate      |     |
                                  |                                                              |       |     |
                                  |                                                         1x1, sigmoid  |     |
                                  |                                                             edges 720 |     |
                                  |                                                 Canny 720 -- concat   |     |
                                  |                                                         1x1, sigmoid  |     |
                                  |                                                              +--------------+
                                  +---- 1x1 conv 48 ---- concat 360, 304 -------------------------+
                                                              |
                                        3x3 conv 256, 3x3 conv 256, 1x1 conv -- x2 -- logits 720

    gate       s (channels C) and the side output r of the regular stream, 1 channel, at the size of the image:
               alpha = sigmoid(BN(1x1(ReLU(1x1(BN(concat(s, r)))))))        one number for each pixel
               s'    = 1x1(s * (1 + alpha))

    ASPP       image features, edges through a 1x1 conv 256, a 1x1 conv 256, three 3x3 convs 256 of the rates 12,
               24 and 36: concatenated, 1536, and a 1x1 conv to 256

A block is that of ResNet-18. A conv of the ASPP or the last part has batch normalisation and ReLU, but for the two
1x1 convs to 48 and to 256, and the last one.

    parameters, 19 classes, WideResNet-38: 137,278,125
        trunk 105,062,720, shape stream with the Canny weights 107,885, ASPP 30,412,032 and its last
        1x1 conv 393,216, 48 channels 6,144, last part 1,296,128

The edge machinery is less than a thousandth of it. On a ResNet with output stride 8, the streams meet thus: the
shape stream starts from conv1, the gates listen to layer1, layer2 and layer4, ASPP is on layer4, and the 48
channels are of layer1: 40,523,181 parameters on ResNet-50, 59,515,309 on ResNet-101.

Losses (`losses`), with the weights of the paper: cross-entropy 1, the edges' own balanced cross-entropy 20
(ops/balanced_edge_loss.py), cross-entropy at predicted edges 1, and the dual-task loss 1 (ops/dual_task_loss.py).
The first and third weigh the classes by 1 + (1 - share of the pixels), image by image. The true edges are those of
the mask, 2 pixels to each side (data/edges.py), and predicted ones those of a probability above 0.8.

Differences from the paper, or choices where paper and release differ
    * Canny's edges join behind the shape stream, as in the release; the paper has image gradients enter it. They
      are of the image that the eye sees: `mean` and `std` undo the normalisation, and grey values are whole
      numbers. The release casts the normalised image to bytes, where negative values wrap around. They are 0 or 1
      here, not 0 or 255: a 1x1 convolution of ordinary weights would saturate the sigmoid at once.
    * The edge loss takes logits. The release hands a sigmoid to a loss that takes its sigmoid again.
    * The dual-task loss has a gradient that comes from borders; the release's has not (ops/dual_task_loss.py).
    * Class 0 has borders like every other class, and any number of classes is possible.
    * Losses are means over the images of a batch, where the release has sums: with one image on each device, as
      published, that is the same.
    * A fourth side output, which the release creates and never uses (65 parameters), is left out.
    * Other trunks than WideResNet-38 are ours: the paper has results for them, but published no code.
    * `width` multiplies all channels.

Any image of at least 1 x 1 pixels is taken.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import backend, cuda, nn
from tinyseg import functional as F
from tinyseg.backend import Array
from tinyseg.data.edges import canny, mask_edges
from tinyseg.functional import Input
from tinyseg.models import backbones
from tinyseg.models.aspp import ImagePooling, conv1x1, conv3x3
from tinyseg.models.backbones import classifier
from tinyseg.models.backbones.resnet import BasicBlock, Place
from tinyseg.models.deeplab import check_settings
from tinyseg.models.network import PixelLoss, SegmentationNetwork
from tinyseg.ops import edges as gpu_edges
from tinyseg.ops.arithmetic import mul
from tinyseg.ops.label_maps import image_weights, labels_above
from tinyseg.tape import Tensor

RATES = (12, 24, 36)
EDGE_LOGIT = math.log(0.8 / (1 - 0.8))  # of a predicted edge


class Taps(NamedTuple):
    """Which of the trunk's maps go where."""

    shape: str  # what the shape stream starts from
    gates: tuple[str, str, str]  # what the gates listen to
    fine: str  # what the last part sees besides ASPP
    last: str  # what ASPP sees


WIDE_RESNET_TAPS = Taps("mod1", ("mod3", "mod4", "mod7"), "mod2", "mod7")
RESNET_TAPS = Taps("conv1", ("layer1", "layer2", "layer4"), "layer1", "layer4")
BACKBONES = {
    "wide_resnet38": WIDE_RESNET_TAPS,
    **{f"resnet{depth}": RESNET_TAPS for depth in (18, 34, 50, 101)},
}


class Outputs(NamedTuple):
    """What the network says in training."""

    logits: Tensor  # N H W classes
    edge_logits: Tensor  # N H W 1, before the sigmoid


class GatedConv(nn.Module):
    """s (N, H, W, channels) -> the same shape, with more of the pixels that the side output r (N, H, W, 1) and s
    itself make interesting."""

    def __init__(self, channels: int, *, rng: np.random.Generator):
        self.norm1 = nn.BatchNorm2d(channels + 1)
        self.gate1 = nn.Conv2d(channels + 1, channels + 1, 1, rng=rng)
        self.gate2 = nn.Conv2d(channels + 1, 1, 1, rng=rng)
        self.norm2 = nn.BatchNorm2d(1)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False, init=nn.init.xavier_normal(), rng=rng)

    def forward(self, s: Input, r: Input) -> Tensor:
        x = self.norm1(F.concat([s, r]))
        alpha = F.sigmoid(self.norm2(self.gate2(F.relu(self.gate1(x)))))
        return self.conv(F.mul(s, F.add(alpha, 1.0)))


class ShapeStream(nn.Module):
    """The shape stream: a map of the trunk, and the three that its gates listen to -> edge logits (N, H, W, 1).

    channels       of the first map
    gate_channels  of the three others
    """

    def __init__(self, channels: int, gate_channels: Sequence[int], *, rng: np.random.Generator):
        self.sides = [nn.Conv2d(given, 1, 1, rng=rng) for given in gate_channels]
        self.blocks, self.reductions, self.gates = [], [], []
        for _ in gate_channels:
            block = BasicBlock(channels, channels, style="torchvision", rng=rng)
            block.place(Place(stride=1, rate=1, rate_after=1))
            fewer = classifier.scaled(channels, 1 / 2)
            self.blocks.append(block)
            self.reductions.append(nn.Conv2d(channels, fewer, 1, rng=rng))
            self.gates.append(GatedConv(fewer, rng=rng))
            channels = fewer
        self.fuse = nn.Conv2d(channels, 1, 1, bias=False, rng=rng)

    def forward(self, s: Input, listened: Sequence[Input], size: Sequence[int]) -> Tensor:
        s = enlarge(s, size)
        parts = zip(self.blocks, self.reductions, self.gates, self.sides, listened, strict=True)
        for block, reduction, gate, side, map in parts:
            s = gate(reduction(block(s)), enlarge(side(map), size))
        return self.fuse(s)


class EdgeASPP(nn.Module):
    """Atrous spatial pyramid pooling with one branch more, for the edges. (N, h, w, in_channels), (N, H, W, 1) ->
    (N, h, w, 6 * channels)"""

    def __init__(self, in_channels: int, channels: int, *, rng: np.random.Generator):
        self.image = ImagePooling(in_channels, channels, rng=rng)
        self.edge = conv1x1(1, channels, rng=rng)
        self.convs = [conv1x1(in_channels, channels, rng=rng)]
        for rate in RATES:
            branch = conv3x3(in_channels, channels, separable=False, rng=rng)
            conv = branch[0]
            assert isinstance(conv, nn.Conv2d)
            conv.options["dilation"] = conv.options["padding"] = rate
            self.convs.append(branch)

    def forward(self, x: Input, edges: Input) -> Tensor:
        edge = self.edge(enlarge(edges, x.shape[1:3]))
        return F.concat([self.image(x), edge, *(branch(x) for branch in self.convs)])


class GSCNN(SegmentationNetwork):
    """See the top of this file.

    backbone      "wide_resnet38", "resnet50", "resnet101", ...
    mean, std     of the normalisation that images have gone through, values of 0 to 1 before: a number, or one for
                  each channel; Canny's edges are of the image before it. By default 0.45 and 0.225
    loss_weights  of the cross-entropy, the edge loss, the cross-entropy at edges, and the dual-task loss
    temperature   of the Gumbel softmax of the dual-task loss; the paper has 1, the release 0.5
    width         multiplies all channels
    rng           draws the initial weights, and the seed of the dual-task loss's noise
    """

    align_corners = False  # of the logits; maps inside the network are enlarged with aligned corners

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 19,
        *,
        backbone: str = "wide_resnet38",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        loss_weights: tuple[float, float, float, float] = (1.0, 20.0, 1.0, 1.0),
        temperature: float = 1.0,
        width: float = 1.0,
        rng: np.random.Generator,
    ):
        check_settings("GSCNN", in_channels=in_channels, classes=classes, width=width)
        classifier.check_choice("GSCNN", "backbone", backbone, tuple(BACKBONES))
        mean, std = 0.45 if mean is None else mean, 0.225 if std is None else std
        for name, value in (("mean", mean), ("std", std)):
            if np.shape(value) not in ((), (in_channels,)):
                raise ValueError(
                    f"GSCNN: {name} must be one number, or {in_channels}, one for each channel; got {value}"
                )
        self.in_channels, self.classes, self.taps = in_channels, classes, BACKBONES[backbone]
        self.mean, self.std = mean, std
        self.loss_weights, self.temperature = loss_weights, temperature
        self.trunk = backbones.create(backbone, in_channels, None, output_stride=8, width=width, rng=rng)
        channels = self.trunk.stage_channels
        inner, fine = classifier.scaled(256, width), classifier.scaled(48, width)
        self.shape_stream = ShapeStream(
            channels[self.taps.shape], [channels[name] for name in self.taps.gates], rng=rng
        )
        self.with_canny = nn.Conv2d(2, 1, 1, bias=False, rng=rng)
        self.aspp = EdgeASPP(channels[self.taps.last], inner, rng=rng)
        self.join = nn.Conv2d(6 * inner, inner, 1, bias=False, rng=rng)
        self.fine = nn.Conv2d(channels[self.taps.fine], fine, 1, bias=False, rng=rng)
        self.last = nn.Sequential(
            *conv3x3(fine + inner, inner, separable=False, rng=rng),
            *conv3x3(inner, inner, separable=False, rng=rng),
            nn.Conv2d(inner, classes, 1, bias=False, rng=rng),
        )
        self.noise_seed = int(rng.integers(2**63))

    def forward(self, x: Input) -> Tensor:
        return self.outputs(x).logits

    def outputs(self, x: Input, canny_edges: Array | None = None) -> Outputs:
        """Logits and edge logits of images (N, H, W, in_channels).

        canny_edges  (N, H, W, 1), 0 or 1; by default those of `canny_edges_of(x)`
        """
        maps, size = self.trunk.stages(x), x.shape[1:3]
        seen = self.canny_edges_of(x) if canny_edges is None else canny_edges
        edge_logits = self.shape_stream(maps[self.taps.shape], [maps[name] for name in self.taps.gates], size)
        edges = F.concat([F.sigmoid(edge_logits), cuda.astype(seen, edge_logits.data.dtype)])
        acts = F.sigmoid(self.with_canny(edges))

        fine = self.fine(maps[self.taps.fine])
        context = self.join(self.aspp(maps[self.taps.last], acts))
        scores = self.last(F.concat([fine, enlarge(context, fine.shape[1:3])]))
        return Outputs(F.resize(scores, size, align_corners=False), edge_logits)

    def canny_edges_of(self, x: Input) -> Array:
        """Canny's edges of normalised images: (N, H, W, 1), 0 or 1, in the images' type. Nothing flows back."""
        images = x.data if isinstance(x, Tensor) else x
        mean, std = (
            np.broadcast_to(np.array(value, np.float64), self.in_channels) for value in (self.mean, self.std)
        )
        find = backend.choose(images, numpy=canny_of_normalised, numba=canny_of_normalised, cuda=gpu_edges.canny)
        edges = find(images, mean, std)
        return edges.reshape(*edges.shape, 1)

    def losses(
        self,
        outputs: Outputs,
        labels: np.ndarray,
        pixel_loss: PixelLoss,
        *,
        weights: np.ndarray | None = None,
        step: int | Array = 0,
    ) -> dict[str, Tensor]:
        """The four losses. `weights` and the settings of `pixel_loss` act on the first one."""
        ignored = -1 if pixel_loss.ignore_label is None else pixel_loss.ignore_label
        by_image = image_weights(labels, self.classes, ignore_label=ignored)
        if weights is not None:
            by_image, _ = mul(by_image, cuda.astype(weights, by_image.dtype))
        find = backend.choose(labels, numpy=mask_edges, numba=mask_edges, cuda=gpu_edges.mask_edges)
        edges = find(labels, ignore_label=pixel_loss.ignore_label)
        edge_scores = F.widened(outputs.edge_logits).data.reshape(edges.shape)
        at_edges = labels_above(edge_scores, EDGE_LOGIT, labels, ignored)
        terms = {
            "pixels": pixel_loss(outputs.logits, labels, by_image),
            "edges": F.balanced_edge_loss(outputs.edge_logits, edges.reshape(*edges.shape, 1)),
            "at_edges": image_weighted_cross_entropy(outputs.logits, at_edges, ignore_label=ignored),
            "dual_task": F.dual_task_loss(
                outputs.logits,
                labels,
                temperature=self.temperature,
                seed=self.noise_seed,
                offset=step,
                ignore_label=ignored,
            ),
        }
        return {
            name: F.mul(term, weight)
            for (name, term), weight in zip(terms.items(), self.loss_weights, strict=True)
        }


def canny_of_normalised(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Canny's edges (N, H, W) of images (N, H, W, C) on the CPU, 0 or 1 in the images' type."""
    visible = np.rint(255 * (images * std + mean))
    return np.array([canny(image) for image in visible], images.dtype)


def image_weighted_cross_entropy(logits: Tensor, labels: Array, *, ignore_label: int) -> Tensor:
    """The cross-entropy with `image_weights`. An image without labels counts 0 in the mean."""
    weights = image_weights(labels, logits.shape[-1], ignore_label=ignore_label)
    return F.cross_entropy(logits, labels, pixel_weights=weights, ignore_label=ignore_label, reduction="sum")


def enlarge(x: Input, size: Sequence[int]) -> Input:
    return x if tuple(x.shape[1:3]) == tuple(size) else F.resize(x, tuple(size), align_corners=True)
