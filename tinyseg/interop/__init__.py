"""Weights from and for PyTorch: `.pth` and safetensors files with torchvision's names.

    net = backbones.create("resnet50", classes=1000)
    interop.load_weights(net, "resnet50-0676ba61.pth", convention=interop.TORCHVISION)
    interop.save_weights("mine.pth", net)          # for torch.load(..., weights_only=True)

    weights = interop.read_weights("some.pth")     # or just look inside: names, NumPy arrays, convention
    interop.write_weights("some.safetensors", weights.arrays)

PyTorch is not needed. Reading runs nothing that a file contains: a `.pth` is a pickle, a program, which Python's
own reader would execute with all the rights of the user. See `pickles` for how it is read here, `pth` and
`safetensors_file` for the containers, `layout` for how weights are turned, and `names` for the rules of names.
"""

from tinyseg.interop.convention import CAFFE, CONVENTIONS, GOOGLENET, TORCHVISION, VGG_FEATURES, Convention
from tinyseg.interop.errors import WeightsError
from tinyseg.interop.files import Weights, read_weights, write_weights
from tinyseg.interop.modules import Loaded, load_weights, save_weights

__all__ = [
    "CAFFE",
    "CONVENTIONS",
    "GOOGLENET",
    "TORCHVISION",
    "VGG_FEATURES",
    "Convention",
    "Loaded",
    "Weights",
    "WeightsError",
    "load_weights",
    "read_weights",
    "save_weights",
    "write_weights",
]
