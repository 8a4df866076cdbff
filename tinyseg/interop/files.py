"""Weight files, whichever their container."""

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyseg.backend import Array
from tinyseg.interop import convention as conventions
from tinyseg.interop import pth, pth_writer, safetensors_file
from tinyseg.interop.convention import Convention
from tinyseg.interop.errors import WeightsError
from tinyseg.interop.pickles import ADVICE
from tinyseg.interop.pth import Content

SUFFIXES = (".pth", ".pt", ".safetensors")

OWN = (
    "is a checkpoint of tinyseg, in a layout of its own; `tinyseg convert` exports it, and "
    "tinyseg.train.prediction.load opens it"
)


@dataclass(frozen=True)
class Weights:
    """The content of a weight file, in PyTorch's names and layouts.

    The arrays are for reading; those of a .pth may be views that are not contiguous.
    """

    path: Path
    arrays: Mapping[str, Array]
    container: str  # "zip", "stacked pickles" or "safetensors"
    convention: Convention | None = None  # if the file says it
    ignored: tuple[str, ...] = ()  # entries that are no tensors


def read_weights(path: str | Path) -> Weights:
    """Read a .pth (zip or stacked pickles) or safetensors file. What it is, its first bytes tell, not its name.

    Raises `WeightsError` if it is missing, damaged, too odd to be trusted or of no such kind. Nothing in the file
    is run, and no more memory is taken than its numbers need.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, _mapped(file) as mapped:
            content = _read(file, mapped)
        if str(content.metadata.get("format")).startswith("tinyseg"):
            raise WeightsError(OWN)
        found = Convention.from_metadata(content.metadata)
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error.__cause__
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    return Weights(path, content.arrays, content.container, found, content.ignored)


@contextlib.contextmanager
def _mapped(file) -> Iterator[mmap.mmap]:
    """The file's bytes, without reading them yet."""
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # there is nothing to map
        raise WeightsError("is empty") from error
    with mapped:
        yield mapped


def _read(file, mapped: mmap.mmap) -> Content:
    start = mapped[:512]
    if start.startswith(pth.ZIP_SIGNATURE):
        return pth.read_zip(file, len(mapped))
    if pth.STACKED_SIGNATURE in start[:32]:
        return pth.read_stacked(mapped)
    if start[pth.TAR_OFFSET :].startswith(pth.TAR_SIGNATURE):
        raise WeightsError(
            f"refused: it is a tar archive, as PyTorch wrote before 2017, and cannot be read safely; {ADVICE}"
        )
    if safetensors_file.looks_like(start):
        return safetensors_file.read(mapped)
    raise WeightsError("is no weight file: neither a .pth of PyTorch (zip or stacked pickles) nor safetensors")


def write_weights(path: str | Path, arrays: Mapping[str, Array], convention: Convention | None = None) -> None:
    """Write arrays in PyTorch's names and layouts, as .pth (or .pt) or .safetensors by the name's ending.

    A .pth is read by `torch.load(path, weights_only=True)`. The file is whole or not there. Raises `WeightsError`
    for another ending or a type of array that files do not know, and OSError where the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"cannot tell the format of {path}: the name must end in {', '.join(SUFFIXES)}")
    own = {conventions.KEY: convention.to_json()} if convention is not None else {}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.suffix == ".safetensors":
            safetensors_file.write(temporary, arrays, {"format": "pt", **own})
        else:
            pth_writer.write(temporary, arrays, own)
        temporary.replace(path)
    except WeightsError as error:
        raise WeightsError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
