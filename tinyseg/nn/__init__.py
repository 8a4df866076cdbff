"""Networks: modules, layers, and how weights start (`nn.init`)."""

from tinyseg.nn import init
from tinyseg.nn.crf import CRFRNN
from tinyseg.nn.layers import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    GlobalAvgPool2d,
    GroupNorm,
    Identity,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Resize,
    Sigmoid,
    Tanh,
)
from tinyseg.nn.module import Buffer, Module, Parameter, Sequential

__all__ = [
    "CRFRNN",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Buffer",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "GlobalAvgPool2d",
    "GroupNorm",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Resize",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "init",
]
