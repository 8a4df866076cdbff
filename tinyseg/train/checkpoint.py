"""Checkpoints: safetensors files that say what they are, and that are noticed when they are damaged.

A run keeps two. `best.safetensors` holds the weights of the epoch with the best score, ready to be used or
given away; `last.safetensors` holds the weights, the optimiser's state and the place in the run, so that
training goes on from it as if it had never stopped.

The arrays are the entries of the model's state dict, under their own names, and the optimiser's under
"optimiser/...". The metadata, all strings as the format demands, are

    format      "tinyseg 1"
    version     of tinyseg
    config      the run's configuration, JSON
    labels      the classes, and the input convention: channels and their order, mean, std, align_corners; JSON
    progress    epoch, step, scores, JSON
    checksum    BLAKE2b of everything else

A file is complete or absent: it is written under another name and renamed (`files.write_atomically`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import tinyseg
from tinyseg.interop.convention import Convention
from tinyseg.train import files
from tinyseg.train.config import Config, from_tables, to_tables
from tinyseg.train.errors import CheckpointError, SettingError

FORMAT = "tinyseg 1"
OPTIMISER = "optimiser/"
METADATA = ("format", "version", "config", "labels", "progress", "checksum")


@dataclass(frozen=True)
class Labels:
    """What a network's outputs mean, and what its input must be: enough to predict without the data set."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]  # R, G, B of each class
    ignore_label: int | None
    channels: int  # of the image: 1 (grey) or 3 (RGB)
    mean: tuple[float, ...]  # subtracted from an image in 0..1, per channel
    std: tuple[float, ...]  # then divided by
    align_corners: bool | None = None  # how the network enlarges its scores; None where it does not interpolate

    @classmethod
    def of(cls, dataset: Any) -> "Labels":
        return cls(
            classes=tuple(dataset.classes),
            palette=tuple(tuple(int(value) for value in colour) for colour in dataset.palette),
            ignore_label=dataset.ignore_label,
            channels=int(dataset.channels),
            mean=tuple(float(value) for value in dataset.mean),
            std=tuple(float(value) for value in dataset.std),
        )

    @property
    def channel_order(self) -> str:
        return "RGB" if self.channels == 3 else "grey"

    @property
    def convention(self) -> Convention:
        """What the network expects of an image, as it is written for other programs."""
        return Convention(self.mean, self.std, self.channel_order, self.align_corners)


@dataclass
class Progress:
    """The place in a run. `epoch` counts the finished ones: it is the number of the current one, from 0."""

    epoch: int = 0
    batch: int = 0  # batches of the current epoch that are done
    step: int = 0  # updates of the weights since the start
    loss_sum: float = 0.0  # over the current epoch's images
    loss_terms: dict[str, float] = field(default_factory=dict)  # the same for each term of the loss
    images: int = 0  # of the current epoch
    seconds: float = 0.0  # of training and validation since the start
    best_score: float | None = None
    best_epoch: int | None = None


@dataclass
class Checkpoint:
    config: Config
    labels: Labels
    model: Mapping[str, np.ndarray]
    progress: Progress = field(default_factory=Progress)
    optimiser: Mapping[str, np.ndarray] | None = None  # None: weights only
    path: Path | None = None


# ------------------------------------------------------------------------------------------------------- writing


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint. Raises `RunFolderError` if it cannot be written; an older file at `path` then stays."""
    import safetensors.numpy

    state = {OPTIMISER + name: value for name, value in (checkpoint.optimiser or {}).items()}
    arrays = {name: np.asarray(value, order="C") for name, value in {**checkpoint.model, **state}.items()}
    metadata = {
        "format": FORMAT,
        "version": tinyseg.__version__,
        "config": json.dumps(to_tables(checkpoint.config)),
        "labels": json.dumps(asdict(checkpoint.labels) | {"channel_order": checkpoint.labels.channel_order}),
        "progress": json.dumps(asdict(checkpoint.progress)),
    }
    metadata["checksum"] = _checksum(arrays, metadata)
    files.write_atomically(path, safetensors.numpy.save(arrays, metadata))


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps({key: metadata[key] for key in METADATA if key != "checksum"}).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------- reading


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises `CheckpointError` if it is missing, damaged, or no checkpoint of tinyseg."""
    import safetensors
    import safetensors.numpy

    try:
        content = path.read_bytes()
        arrays = safetensors.numpy.load(content)
        metadata = _metadata(content)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}{_others(path)}") from None
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}){_others(path)}") from error

    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "a safetensors file of another program")
        raise CheckpointError(f"{path} is no checkpoint that this version can read: it is {found}, not {FORMAT!r}")
    absent = [key for key in METADATA if key not in metadata]
    if absent or _checksum(arrays, metadata) != metadata["checksum"]:
        raise CheckpointError(f"the checkpoint {path} is damaged: its checksum is wrong{_others(path)}")
    return _decoded(path, arrays, metadata)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of tinyseg, and not weights in another layout. False for what is no file."""
    import safetensors

    try:
        with safetensors.safe_open(path, "np") as file:
            return str((file.metadata() or {}).get("format")).startswith("tinyseg")
    except (safetensors.SafetensorError, OSError):
        return False  # whoever reads it next says what is wrong


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in a file's header: 8 bytes with the header's length, then the header as JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def _decoded(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Checkpoint:
    optimiser = {
        name.removeprefix(OPTIMISER): value for name, value in arrays.items() if name.startswith(OPTIMISER)
    }
    labels = json.loads(metadata["labels"])
    order = labels.pop("channel_order", None)  # that of the images that are read here, or the file is another's
    if order not in (None, "RGB", "grey"):
        raise CheckpointError(f"{path} wants the channels of its images in the order {order}, not as RGB or grey")
    try:
        config = from_tables(json.loads(metadata["config"]))
    except SettingError as error:
        raise CheckpointError(
            f"{path} was written by tinyseg {metadata['version']}, and its configuration does not fit this "
            f"version ({tinyseg.__version__}): {error}"
        ) from error
    return Checkpoint(
        config=config,
        labels=Labels(
            **labels
            | {
                "classes": tuple(labels["classes"]),
                "palette": tuple(map(tuple, labels["palette"])),
                "mean": tuple(labels["mean"]),
                "std": tuple(labels["std"]),
            }
        ),
        model={name: value for name, value in arrays.items() if not name.startswith(OPTIMISER)},
        progress=Progress(**json.loads(metadata["progress"])),
        optimiser=optimiser or None,
        path=path,
    )


def _others(path: Path) -> str:
    """The end of an error message: the checkpoints that lie beside the one that cannot be used."""
    beside = sorted(other.name for other in path.parent.glob("*.safetensors") if other != path)
    return f"; beside it there is {' and '.join(beside)}" if beside else ""
