"""The usual dense CRF for images: a smoothness kernel and an appearance kernel, and the numbers that papers chose.

    preset                  w1   s_a   s_b   w2   s_g   iterations   normalisation
    pydensecrf              10    80    13    3     3            5   symmetric       its README's example
    deeplab_v1               4    49     5    3     3           10   after           LargeFOV's run script
    deeplab_v2_vgg16         4    65     3    2     2           10   symmetric       as ported to pydensecrf
    deeplab_v2_resnet101     4    67     3    3     1           10   symmetric       as ported to pydensecrf
    crf_rnn                  5   160     3    3     3           10   after           where training starts (T = 5)

    w1 exp(-|p_i - p_j|² / 2 s_a² - |I_i - I_j|² / 2 s_b²)  +  w2 exp(-|p_i - p_j|² / 2 s_g²)

p are positions in pixels, I colours in grey levels 0 to 255. The numbers fit images of about 500 x 375 pixels.

Sources: Krähenbühl & Koltun, NIPS 2011, eq. 3; Chen et al., "Semantic image segmentation with deep convolutional
nets and fully connected CRFs", ICLR 2015; Chen et al., "DeepLab", TPAMI 2018; Zheng et al., ICCV 2015.
"""

import difflib
import math
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from tinyseg.crf.features import bandwidths
from tinyseg.crf.filters import NORMALISATIONS, Normalisation


class Parameters(NamedTuple):
    """The numbers of a dense CRF with two kernels and the Potts model."""

    appearance_weight: float = 10.0  # w1: what disagreeing costs two pixels that are close and of like colour
    appearance_position: float | tuple[float, float] = 80.0  # s_a, in pixels; a pair is (x, y)
    appearance_colour: float | tuple[float, ...] = 13.0  # s_b, in grey levels; or one for each channel
    smoothness_weight: float = 3.0  # w2: what disagreeing costs two pixels that are close
    smoothness_position: float | tuple[float, float] = 3.0  # s_g, in pixels
    iterations: int = 5
    normalisation: Normalisation = "symmetric"


PRESETS: dict[str, Parameters] = {
    "pydensecrf": Parameters(),
    "deeplab_v1": Parameters(4, 49, 5, 3, 3, 10, "after"),
    "deeplab_v2_vgg16": Parameters(4, 65, 3, 2, 2, 10),
    "deeplab_v2_resnet101": Parameters(4, 67, 3, 3, 1, 10),
    "crf_rnn": Parameters(5, 160, 3, 3, 3, 10, "after"),
}


def parameters(preset: str | Parameters = "pydensecrf", **changes: Any) -> Parameters:
    """The parameters of a preset by name, or those given, with some of them changed; all checked.

    >>> parameters("deeplab_v1", iterations=5).appearance_colour
    5
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"there is no CRF preset {preset!r}{_nearest(preset, PRESETS)}: {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    for name in changes:
        if name not in Parameters._fields:
            known = ", ".join(Parameters._fields)
            raise ValueError(f"a CRF has no parameter {name!r}{_nearest(name, Parameters._fields)}: {known}")
    chosen = preset._replace(**changes)
    for name in ("appearance_weight", "smoothness_weight"):
        weight = getattr(chosen, name)
        if not (isinstance(weight, Real) and math.isfinite(weight)):
            raise ValueError(f"{name} must be a finite number, got {weight!r}")
    for name in ("appearance_position", "smoothness_position"):
        bandwidths("CRF parameters", name, getattr(chosen, name), 2)
    colour = chosen.appearance_colour
    bandwidths("CRF parameters", "appearance_colour", colour, max(1, np.size(colour)))
    if chosen.normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}; got {chosen.normalisation!r}")
    if not isinstance(chosen.iterations, Integral) or chosen.iterations < 0:
        raise ValueError(f"iterations must be a whole number, 0 or more; got {chosen.iterations!r}")
    return chosen


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}? There are" if close else "; there are"
