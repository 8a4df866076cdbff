"""The networks, by name.

    net = models.create("unet_padded", in_channels=3, classes=11, base=16)

Each network's own class stands in the file named after its paper; settings beyond those of the paper are explained
there.
"""

import difflib
import inspect
from collections.abc import Callable
from functools import partial

import numpy as np

from tinyseg.models.crf_rnn import CRFRNN, crf_rnn_fcn8s, crf_rnn_unet
from tinyseg.models.deeplab_v1 import DeepLabV1
from tinyseg.models.deeplab_v2 import DeepLabV2
from tinyseg.models.deeplab_v3 import DeepLabV3, TorchvisionDeepLabV3
from tinyseg.models.deeplab_v3plus import DeepLabV3Plus
from tinyseg.models.fastfcn import FastFCN
from tinyseg.models.fc_densenet import FCDenseNet
from tinyseg.models.fcn import FCN
from tinyseg.models.fcn_resnet import FCNResNet
from tinyseg.models.gscnn import GSCNN
from tinyseg.models.network import SegmentationNetwork
from tinyseg.models.plain import Plain
from tinyseg.models.spp import SPPNet
from tinyseg.models.unet import UNet

MODELS: dict[str, Callable[..., SegmentationNetwork]] = {
    "crf_rnn_fcn8s": crf_rnn_fcn8s,
    "crf_rnn_unet": crf_rnn_unet,
    "deeplab_v1_4x4": partial(DeepLabV1, fc6_kernel=4, fc6_rate=4, fc_channels=4096),
    "deeplab_v1_7x7": partial(DeepLabV1, fc6_kernel=7, fc6_rate=4, fc_channels=4096),
    "deeplab_v1_largefov": DeepLabV1,
    "deeplab_v1_msc": partial(DeepLabV1, multi_scale=True),
    "deeplab_v2_resnet101": partial(DeepLabV2, backbone="resnet101"),
    "deeplab_v2_vgg16": partial(DeepLabV2, backbone="vgg16"),
    "deeplab_v3_resnet50": partial(DeepLabV3, backbone="resnet50"),
    "deeplab_v3_resnet101": partial(DeepLabV3, backbone="resnet101"),
    "deeplab_v3plus_resnet101": partial(DeepLabV3Plus, backbone="resnet101", separable=False),
    "deeplab_v3plus_xception65": partial(DeepLabV3Plus, backbone="xception65"),
    "deeplabv3_resnet50": partial(TorchvisionDeepLabV3, depth=50),
    "deeplabv3_resnet101": partial(TorchvisionDeepLabV3, depth=101),
    "fastfcn_deeplab_resnet50": partial(FastFCN, head="deeplab", backbone="resnet50"),
    "fastfcn_deeplab_resnet101": partial(FastFCN, head="deeplab", backbone="resnet101"),
    "fastfcn_encnet_resnet50": partial(FastFCN, head="encnet", backbone="resnet50"),
    "fastfcn_encnet_resnet101": partial(FastFCN, head="encnet", backbone="resnet101"),
    "fastfcn_fcn_resnet50": partial(FastFCN, head="fcn", backbone="resnet50"),
    "fastfcn_fcn_resnet101": partial(FastFCN, head="fcn", backbone="resnet101"),
    "fastfcn_psp_resnet50": partial(FastFCN, head="psp", backbone="resnet50"),
    "fastfcn_psp_resnet101": partial(FastFCN, head="psp", backbone="resnet101"),
    "fc_densenet56": partial(FCDenseNet, layers=(4, 4, 4, 4, 4, 4), growth=12),
    "fc_densenet67": partial(FCDenseNet, layers=(5, 5, 5, 5, 5, 5), growth=16),
    "fc_densenet103": partial(FCDenseNet, layers=(4, 5, 7, 10, 12, 15), growth=16),
    "fcn32s": partial(FCN, stride=32),
    "fcn16s": partial(FCN, stride=16),
    "fcn8s": FCN,
    "fcn8s_at_once": partial(FCN, at_once=True),
    "fcn_alexnet": partial(FCN, backbone="alexnet", stride=32),
    "fcn_googlenet": partial(FCN, backbone="googlenet", stride=32, padding="same"),
    "fcn_resnet50": partial(FCNResNet, depth=50),
    "fcn_resnet101": partial(FCNResNet, depth=101),
    "gscnn_resnet50": partial(GSCNN, backbone="resnet50"),
    "gscnn_resnet101": partial(GSCNN, backbone="resnet101"),
    "gscnn_wideresnet38": GSCNN,
    "plain": Plain,
    "unet": UNet,
    "unet_release": partial(UNet, variant="release"),
    "unet_padded": partial(UNet, variant="padded"),
}


def create(
    name: str,
    in_channels: int = 3,
    classes: int = 21,
    *,
    rng: np.random.Generator | None = None,
    **settings: object,
) -> SegmentationNetwork:
    """The network called `name`, with random weights from `rng` (by default the same ones every time).

    `settings` are those of the network's class, for instance `base` and `depth` of a U-Net.
    Raises ValueError for an unknown name or setting, and lists the known ones.
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"create: there is no model {name!r}{hint} Known: {', '.join(sorted(MODELS))}")
    build = MODELS[name]
    known = [
        parameter.name
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "rng"
    ]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise ValueError(f"create: {name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    rng = np.random.default_rng(0) if rng is None else rng
    return build(in_channels, classes, rng=rng, **settings)


__all__ = [
    "CRFRNN",
    "FCN",
    "GSCNN",
    "MODELS",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "FCDenseNet",
    "FCNResNet",
    "FastFCN",
    "Plain",
    "SPPNet",
    "SegmentationNetwork",
    "UNet",
    "create",
]
