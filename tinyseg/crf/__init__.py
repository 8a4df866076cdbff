"""Dense CRFs: sharpen a segmentation along the edges of the image, or train that together with the network.

    refined = crf.dense_crf(image, probabilities)                         # (H, W, L), any preset by name
    q, cache = crf.mean_field(unary, coupling, coupling, filters=...)     # an operator pair, with its gradients

What is behind it, in the order in which it is best read:

    parameters    the usual two kernels, and the numbers that papers chose
    features      positions and colours over bandwidths
    filters       what a Gaussian filter is, and four ways to normalise one
    exact         the definition: all pairs of pixels
    lattice       the permutohedral lattice: all pairs, nearly, in linear time
    separable     positions alone, by two convolutions          local     a window around each pixel (ConvCRF)
    mean_field    the updates, and their gradients              energy    what they minimise
    fused         the same updates on lattices, fast        layer        the same in a network
    dense         `dense_crf`                                   original  the same by pydensecrf, where installed
    densecrf      pydensecrf's classes and methods              utils     its helpers
    pictures      marginals before and after each iteration
    fused_device  the updates on lattices on a GPU              arrays    what operators do not have

Where the arrays are, there it runs: with scores, energies or logits on a GPU everything happens there, forward and
backward. The host waits for the GPU when a lattice is made, to learn the range of the features and the number of
vertices. Lattices that have been made can be used in a CUDA graph.
"""

from tinyseg.crf.dense import dense_crf, dense_crf_steps, unary_energies
from tinyseg.crf.energy import free_energy, pydensecrf_kl
from tinyseg.crf.exact import ExactFilter
from tinyseg.crf.features import bilateral_features, position_features
from tinyseg.crf.filters import Filter, Normalised
from tinyseg.crf.inference import infer, iterate, potts
from tinyseg.crf.lattice import LatticeFilter
from tinyseg.crf.layer import refine, refine_backward, refine_without_gradient
from tinyseg.crf.local import LocalFilter
from tinyseg.crf.mean_field import mean_field, mean_field_backward
from tinyseg.crf.parameters import PRESETS, Parameters, parameters
from tinyseg.crf.separable import SeparableFilter

__all__ = [
    "PRESETS",
    "ExactFilter",
    "Filter",
    "LatticeFilter",
    "LocalFilter",
    "Normalised",
    "Parameters",
    "SeparableFilter",
    "bilateral_features",
    "dense_crf",
    "dense_crf_steps",
    "free_energy",
    "infer",
    "iterate",
    "mean_field",
    "mean_field_backward",
    "parameters",
    "position_features",
    "potts",
    "pydensecrf_kl",
    "refine",
    "refine_backward",
    "refine_without_gradient",
    "unary_energies",
]
