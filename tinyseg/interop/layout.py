"""The same weights in two layouts: ours, and PyTorch's, which weight files have.

    layer             here                         in a file                       permutation to a file
    Conv2d            R S C/G O                    O C/G R S                       3 2 0 1
    ConvTranspose2d   R S out/G in                 in out/G R S                    3 2 0 1
    Linear            in out                       out in                          1 0
    everything else   as it is

The type of the layer decides, so that nothing has to be said about single networks. Two things need more:

A fully connected layer on a whole map of s x s pixels has one row for each pixel and channel. Activations are
N H W C here and N C H W there, so its rows come as (s, s, C) here and as (C, s, s) there. The network knows s: it
has an attribute `pooled_side`, and lists the layers behind the map in `fully_connected()`.
GoogLeNet's auxiliary heads have such a layer too, known by its name.

And such a layer may have become a convolution with an s x s kernel, which a file may hold either way:

    (O, C s s)  <->  (O, C, s, s)
"""

import re
from typing import NamedTuple

import numpy as np

from tinyseg import nn
from tinyseg.backend import Array
from tinyseg.interop.names import COUNTER
from tinyseg.nn import Buffer, Module, Parameter

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)

AUXILIARY_LAYER = re.compile(r"(?:^|\.)aux[12]\.fc1$")
AUXILIARY_SIDE = 4


class Entry(NamedTuple):
    """A parameter or buffer of a module that weight files know."""

    name: str
    value: Parameter | Buffer
    layer: Module | None  # None for one in a list of parameters
    side: int = 1  # of the map in front of a fully connected layer

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Its shape in a file."""
        shape = self.value.data.shape
        if self._is_weight(*CONVOLUTIONS):
            return (shape[3], shape[2], shape[0], shape[1])
        return shape[::-1] if self._is_weight(nn.Linear) else shape

    def to_file(self) -> Array:
        """A copy of the array in PyTorch's layout."""
        array = self.value.data
        if self._is_weight(*CONVOLUTIONS):
            array = array.transpose(3, 2, 0, 1)
        elif self._is_weight(nn.Linear):
            inputs, outputs = array.shape
            rows = array.reshape(self.side, self.side, inputs // self.side**2, outputs)
            array = rows.transpose(3, 2, 0, 1).reshape(outputs, inputs)
        return np.array(array, order="C")

    def from_file(self, array: Array) -> Array | None:
        """An array of a file in the layout and type of this one, or None if the shape is another."""
        shape = self.file_shape
        if array.shape != shape:
            # Between a fully connected layer and the convolution with a kernel over its whole input.
            if not self._is_weight(nn.Linear, nn.Conv2d) or {array.ndim, len(shape)} != {2, 4}:
                return None
            if array.shape[0] != shape[0] or array.size != self.value.data.size:
                return None
            array = array.reshape(shape)
        if self._is_weight(*CONVOLUTIONS):
            return array.transpose(2, 3, 1, 0)
        if self._is_weight(nn.Linear):
            outputs, inputs = array.shape
            rows = array.reshape(outputs, inputs // self.side**2, self.side, self.side)
            return rows.transpose(2, 3, 1, 0).reshape(inputs, outputs)
        return array

    def _is_weight(self, *layers: type) -> bool:
        return isinstance(self.layer, layers) and self.name.rpartition(".")[2] == "weight"


def entries(module: Module) -> dict[str, Entry]:
    """The module's parameters and buffers by name, without dropout's counters, which PyTorch does not have."""
    modules = dict(module.named_modules())
    sides = _sides(module)
    found = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        layer = modules.get(name.rpartition(".")[0])
        if not isinstance(layer, nn.Dropout):
            found[name] = Entry(name, value, layer, sides.get(id(layer), 1))
    return found


def _sides(module: Module) -> dict[int, int]:
    """Of the maps that linear layers see flattened, by the layer's identity."""
    found = {}
    for owner in module.modules():
        side = getattr(owner, "pooled_side", 1)
        trunk_alone = getattr(owner, "classes", ...) is None  # a classifier without its last layers
        behind = owner.fully_connected() if side > 1 and not trunk_alone else ()  # type: ignore[attr-defined]
        first = next((layer for layer in behind if isinstance(layer, nn.Linear)), None)
        if first is not None:
            found[id(first)] = side
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and AUXILIARY_LAYER.search(name):
            found[id(layer)] = AUXILIARY_SIDE
    return found


def to_file(module: Module) -> dict[str, Array]:
    """All that PyTorch's state dict of the same network has, in its layout, layer by layer.

    A batch normalisation there also has `num_batches_tracked`, which PyTorch rarely uses; it is zero here.
    """
    place = {name: index for index, (name, _) in enumerate(module.named_modules())}
    state = {name: entry.to_file() for name, entry in entries(module).items()}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            state[f"{name}.{COUNTER}".lstrip(".")] = np.array(0, np.int64)
    ordered = sorted(state, key=lambda name: place.get(name.rpartition(".")[0], -1))
    return {name: state[name] for name in ordered}
