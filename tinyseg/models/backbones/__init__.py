"""Classifiers, by name, and as trunks of segmentation networks.

    net = backbones.create("resnet50", classes=1000)                    # (N, H, W, 3) -> (N, 1000)
    trunk = backbones.create("resnet50", classes=None, output_stride=8)
    maps = trunk.stages(images)                                         # {"conv1": .., "layer1": .., ..}
    dense = backbones.as_convolutions(net)                              # (N, H, W, 3) -> (N, h, w, 1000)

Each one's class stands in the file named after its paper, with its table; what they share is in `classifier.py`.
"""

import difflib
import inspect
from collections.abc import Callable
from functools import partial

import numpy as np

from tinyseg.models.backbones.alexnet import AlexNet
from tinyseg.models.backbones.classifier import Classifier, ConvolutionalClassifier, as_convolutions
from tinyseg.models.backbones.densenet import DenseNet
from tinyseg.models.backbones.googlenet import GoogLeNet
from tinyseg.models.backbones.resnet import ResNet
from tinyseg.models.backbones.vgg import VGG, VGGLargeFOV
from tinyseg.models.backbones.wide_resnet38 import WideResNet38
from tinyseg.models.backbones.xception import Xception
from tinyseg.models.spp import SPPNet

BACKBONES: dict[str, Callable[..., Classifier]] = {
    "alexnet": partial(AlexNet, variant="alexnet"),
    "alexnet_torchvision": partial(AlexNet, variant="torchvision"),
    "caffenet": partial(AlexNet, variant="caffenet"),
    "densenet121": DenseNet,
    "googlenet": GoogLeNet,
    "googlenet_torchvision": partial(GoogLeNet, variant="torchvision"),
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "resnet50": partial(ResNet, depth=50),
    "resnet101": partial(ResNet, depth=101),
    "sppnet": SPPNet,
    "vgg16": VGG,
    "vgg16_bn": partial(VGG, batch_norm=True),
    "vgg16_largefov": VGGLargeFOV,
    "wide_resnet38": WideResNet38,
    "xception41": partial(Xception, depth=41),
    "xception65": partial(Xception, depth=65),
    "xception71": partial(Xception, depth=71),
}


def create(
    name: str,
    in_channels: int = 3,
    classes: int | None = 1000,
    *,
    rng: np.random.Generator | None = None,
    **settings: object,
) -> Classifier:
    """The classifier called `name`, with random weights from `rng` (by default the same ones every time).

    `classes=None` makes the trunk alone, without fully connected layers. `settings` are those of its class, for
    instance `width`. Raises ValueError for an unknown name or setting, and lists the known ones.
    """
    if name not in BACKBONES:
        nearest = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"backbones.create: there is no backbone {name!r}{hint} Known: {', '.join(sorted(BACKBONES))}"
        )
    build = BACKBONES[name]
    known = [
        parameter.name
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "rng"
    ]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise ValueError(f"backbones.create: {name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    rng = np.random.default_rng(0) if rng is None else rng
    return build(in_channels, classes, rng=rng, **settings)


__all__ = [
    "BACKBONES",
    "VGG",
    "AlexNet",
    "Classifier",
    "ConvolutionalClassifier",
    "DenseNet",
    "GoogLeNet",
    "ResNet",
    "SPPNet",
    "VGGLargeFOV",
    "WideResNet38",
    "Xception",
    "as_convolutions",
    "create",
]
