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

from tinyseg.models.fc_densenet import FCDenseNet
from tinyseg.models.network import SegmentationNetwork
from tinyseg.models.plain import Plain
from tinyseg.models.unet import UNet

MODELS: dict[str, Callable[..., SegmentationNetwork]] = {
    "fc_densenet56": partial(FCDenseNet, layers=(4, 4, 4, 4, 4, 4), growth=12),
    "fc_densenet67": partial(FCDenseNet, layers=(5, 5, 5, 5, 5, 5), growth=16),
    "fc_densenet103": partial(FCDenseNet, layers=(4, 5, 7, 10, 12, 15), growth=16),
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


__all__ = ["MODELS", "FCDenseNet", "Plain", "SegmentationNetwork", "UNet", "create"]
