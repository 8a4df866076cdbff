"""The package pydensecrf, where it is installed: the same call, to compare results and times with."""

import importlib
from collections.abc import Sequence

import numpy as np

from tinyseg.backend import Array
from tinyseg.crf.features import bilateral_features, position_features
from tinyseg.crf.filters import NORMALISATIONS, Normalisation
from tinyseg.crf.parameters import Parameters


def load():
    """The module pydensecrf.densecrf; ModuleNotFoundError says how to get it."""
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the backend 'pydensecrf' needs that package, which must be built with old tools: put the lines "
            "'cython<3' and 'setuptools<70' into a file, then run "
            "CYTHON_FORCE_REGEN=1 pip install --build-constraint FILE pydensecrf"
        ) from None


def dense_crf(image: Array, unary: Array, parameters: Parameters) -> Array:
    """Marginals (N, L) of the model that `tinyseg.crf.dense_crf` builds, from energies (N, L)."""
    height, width, _ = image.shape
    features = [
        position_features(height, width, parameters.smoothness_position),
        bilateral_features(image, parameters.appearance_position, parameters.appearance_colour),
    ]
    weights = [parameters.smoothness_weight, parameters.appearance_weight]
    modes = (parameters.normalisation, parameters.normalisation)
    return infer(unary, weights, features, modes, parameters.iterations)


def infer(
    unary: Array,
    compatibilities: Sequence,
    features: Sequence[Array],
    normalisations: Sequence[Normalisation],
    iterations: int,
) -> Array:
    """Marginals (N, L); `compatibilities` in pydensecrf's sense, features (N, d)."""
    package = load()
    points, labels = unary.shape
    model = package.DenseCRF(points, labels)
    model.setUnaryEnergy(np.ascontiguousarray(unary.T, np.float32))
    for compatibility, feature, mode in zip(compatibilities, features, normalisations, strict=True):
        if np.ndim(compatibility):
            compatibility = np.array(compatibility, np.float32)
        else:
            compatibility = float(compatibility)
        number = NORMALISATIONS.index(mode)  # pydensecrf counts them in the same order
        model.addPairwiseEnergy(np.array(feature.T, np.float32, order="C"), compatibility, normalization=number)
    return np.ascontiguousarray(np.array(model.inference(iterations)).T)
