"""Weights to start from: those of another run, of a coarser network, or of a classifier.

    source = start.read("runs/fcn32s")            # a run folder, a checkpoint, or a file of PyTorch
    started = source.into(network)                # the network takes what fits
    started.kept                                  # what keeps its first weights, for instance a new scorer

A network built on a trunk needs all of the trunk, under "trunk." or "backbone.", or a classifier with the same
layers. Of what is behind the trunk each layer is taken that is in the source with the same name and shapes. A
network without a trunk, as a U-Net, needs every layer but those whose shape depends on the number of classes.
Where that is not so, nothing is taken, and the error lists what does not fit. The trunk of a CRF-RNN is a
segmentation network, and a run of that network starts it.

Weights also want their images in a certain form. Those of a run and of files written here say it; of others it
is known for the names of torchvision. The data is then normalised as the weights want it (`Source.labels`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinyseg import interop
from tinyseg.interop import layout, names
from tinyseg.interop.files import SUFFIXES
from tinyseg.interop.layout import Entry
from tinyseg.interop.modules import turn_round
from tinyseg.models import SegmentationNetwork
from tinyseg.models.network import TRUNKS
from tinyseg.train import checkpoint
from tinyseg.train.checkpoint import Labels
from tinyseg.train.errors import CheckpointError
from tinyseg.train.run import Run

LISTED = 8
"""Names in a message; the others are counted."""


@dataclass(frozen=True)
class Started:
    """What became of a source."""

    path: Path
    taken: int  # parameters and buffers of the network that were set
    count: int  # that it has
    kept: tuple[str, ...]  # of the network, with their first weights still
    left: tuple[str, ...]  # of the source, that the network has no use for
    notices: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """For a person, in a few lines."""
        lines = [f"from {self.path}: {self.taken} of {self.count} parameters and buffers"]
        if self.kept:
            lines.append(f"not in it, and as they were: {shortened(self.kept)}")
        if self.left:
            lines.append(f"in it, and of no use here: {shortened(self.left)}")
        return [*lines, *self.notices]


@dataclass(frozen=True)
class Source:
    """Weights from somewhere."""

    path: Path
    arrays: Mapping[str, np.ndarray]
    foreign: bool  # in PyTorch's layout
    convention: interop.Convention | None  # that of the images
    classes: tuple[str, ...] | None = None  # that they tell apart, where it is known

    def labels(self, labels: Labels) -> Labels:
        """The data's labels, with the normalisation that the weights want."""
        if self.convention is None:
            return labels
        rgb = self.convention.in_rgb()
        if len(rgb.mean) != labels.channels:
            raise CheckpointError(
                f"the weights of {self.path} want images with {len(rgb.mean)} channels "
                f"({self.convention.channel_order}), and those of the data have {labels.channels}"
            )
        return replace(labels, mean=rgb.mean, std=rgb.std)

    def into(self, network: SegmentationNetwork, classes: tuple[str, ...] | None = None) -> Started:
        """Give the network all weights that fit. Raises `CheckpointError`, and changes nothing, if too few do.

        classes  that the network is to tell apart, for a notice if the weights are for others
        """
        entries = layout.entries(network)
        available = self._by_our_names(network, entries)
        state, wrong = {}, {}
        for name, entry in entries.items():
            if name not in available:
                continue
            array = self.arrays[available[name]]
            ours = entry.from_file(array) if self.foreign else array
            if ours is None or ours.shape != entry.value.data.shape or ours.dtype.kind != "f":
                wrong[name] = array
            else:
                state[name] = ours
        self._check(network, entries, state, wrong)
        halves = {_layer(name) for name in wrong}  # a bias alone is of no use
        state = {name: value for name, value in state.items() if _layer(name) not in halves}
        if self.convention is not None and self.convention.channel_order == "BGR":
            turn_round(network, state)
        network.load_state_dict(network.state_dict() | state)

        used = {available[name] for name in state}
        learned = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        return Started(
            self.path,
            taken=len(state),
            count=len(entries),
            kept=tuple(name for name in entries if name in learned - set(state)),
            left=tuple(name for name in self.arrays if name not in used and not _is_counter(name)),
            notices=tuple(self._notices(network, classes)),
        )

    # ------------------------------------------------------------------------------------------------- helpers

    def _by_our_names(self, network: SegmentationNetwork, entries: Mapping[str, Entry]) -> dict[str, str]:
        """The source's name for each name that the network has, or would have, for the same thing."""
        found = {name: given for given, name in names.renamed(self.arrays).items()}
        trunk = network.trunk_name()
        if trunk is None:
            return found
        if isinstance(
            getattr(network, trunk), SegmentationNetwork
        ):  # as in front of a CRF: a network in a network
            within = {f"{trunk}.{name}": given for name, given in found.items()}
            if all(name in within for name in entries if name.startswith(f"{trunk}.")):
                return within
        prefix = next((f"{part}." for part in TRUNKS if any(name.startswith(f"{part}.") for name in found)), "")
        inside = {
            f"{trunk}.{name.removeprefix(prefix)}": given
            for name, given in found.items()
            if name.startswith(prefix)
        }
        if prefix:  # a segmentation network: its head may be of use, too
            return {name: given for name, given in found.items() if not name.startswith(prefix)} | inside
        for theirs, ours in network.classifier_names:
            inside |= {
                f"{ours}.{part}": found[f"{theirs}.{part}"]
                for part in ("weight", "bias")
                if f"{theirs}.{part}" in found
            }
        return {name: given for name, given in inside.items() if name in entries}

    def _check(
        self,
        network: SegmentationNetwork,
        entries: Mapping[str, Entry],
        state: Mapping[str, np.ndarray],
        wrong: Mapping[str, np.ndarray],
    ) -> None:
        """Raises `CheckpointError` where the weights are not for such a network."""
        trunk = network.trunk_name()
        needed = [name for name in entries if trunk is None or name.startswith(f"{trunk}.")]
        problems = []
        for name in needed:
            if name in wrong and not (trunk is None and self._is_of_classes(network, entries[name], wrong[name])):
                shape = entries[name].file_shape if self.foreign else entries[name].value.data.shape
                problems.append(f"shape: {name} is {shape} here and {wrong[name].shape} in the file")
            elif name not in state and name not in wrong:
                problems.append(f"missing: {name}")
        if problems:
            what = f"the {trunk} of {type(network).__name__}" if trunk else type(network).__name__
            family = names.family(self.arrays) if self.foreign else None
            origin = f"It has the names of torchvision's {family}. " if family else ""
            raise CheckpointError(
                f"{self.path} does not fit {what}: it belongs to another network, or to one with other settings. "
                f"{origin}{self._channels(network, wrong)}Of the {len(needed)} parameters and buffers that are "
                f"needed, {len(problems)} do not fit:\n  " + "\n  ".join(problems)
            )
        broken = [name for name, value in state.items() if not np.isfinite(value).all()]
        if broken:
            raise CheckpointError(
                f"{self.path} holds weights that are not finite numbers, for instance {broken[0]}"
            )

    def _is_of_classes(self, network: SegmentationNetwork, entry: Entry, array: np.ndarray) -> bool:
        """Whether the shape is another because the network tells apart another number of classes."""
        shape = entry.file_shape if self.foreign else entry.value.data.shape
        if array.ndim != len(shape):
            return False
        different = [ours for ours, theirs in zip(shape, array.shape, strict=True) if ours != theirs]
        return all(length == network.classes for length in different)

    def _channels(self, network: SegmentationNetwork, wrong: Mapping[str, np.ndarray]) -> str:
        """A sentence, where the weights are for images with another number of channels."""
        axis = 1 if self.foreign else 2  # O C R S there, R S C O here
        kernels = [array.shape[axis] for array in wrong.values() if array.ndim == 4]
        if not kernels or kernels[0] not in (1, 3) or kernels[0] == network.in_channels:
            return ""
        return f"Its images have {kernels[0]} channels, and those of the data {network.in_channels}. "

    def _notices(self, network: SegmentationNetwork, classes: tuple[str, ...] | None) -> Iterator[str]:
        if self.convention is None:
            yield "it does not say what images it wants: they are normalised by the data's own mean and deviation"
        if self.classes and classes and self.classes != classes and len(self.classes) == len(classes):
            yield f"its classes are others, {', '.join(self.classes)}, and their scorers were taken all the same"
        trunk = getattr(network, network.trunk_name() or "", None)
        style = getattr(trunk, "style", "torchvision")
        if self.foreign and style != "torchvision":
            yield f"torchvision's ResNets stride in another convolution than one of style {style}"


def read(source: str | Path, weights: str = "best") -> Source:
    """Weights from a run folder, a checkpoint, or a .pth or safetensors file.

    weights   of a run: "best" or "last"; a run that has no best checkpoint yet has its last one taken

    Raises `CheckpointError`, `RunFolderError` or `WeightsError`.
    """
    path = Path(source)
    if path.is_dir() or (not path.exists() and path.suffix not in SUFFIXES):
        run = Run.open(path)
        path = run.best if weights == "best" and run.best.exists() else run.last
    if checkpoint.is_checkpoint(path):
        found = checkpoint.load(path)
        return Source(path, found.model, False, found.labels.convention, found.labels.classes)
    file = interop.read_weights(path)
    family = names.family(file.arrays)
    of_family = {None: None, "googlenet": interop.GOOGLENET}.get(family, interop.TORCHVISION)
    return Source(path, file.arrays, True, file.convention or of_family)


def _is_counter(name: str) -> bool:
    """Whether an entry says nothing about weights: counts of batches, the seeds of dropout."""
    return names.is_counter(name) or name.rpartition(".")[2] in ("calls", "seed")


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def shortened(listed: tuple[str, ...]) -> str:
    """The layers among these names, the first few of them."""
    layers = list(dict.fromkeys(_layer(name) or name for name in listed))
    rest = f" and {len(layers) - LISTED} more" if len(layers) > LISTED else ""
    return ", ".join(layers[:LISTED]) + rest
