"""Reads state dicts that PyTorch saved: `.pth`, `.pt`, `.bin`.

Such a file is one of three containers:

    zip               since PyTorch 1.6. NAME/data.pkl is a pickle in which each tensor refers to a storage; the
                      storage with the key K is the entry NAME/data/K, raw little-endian numbers, not compressed.
    stacked pickles   2017 to 2020, and half of torchvision's downloads. Five pickles one after the other: a magic
                      number, the protocol, what machine wrote it, the object, and the list of storage keys; then
                      for each key the count of its numbers, int64, and the numbers.
    tar               before 2017; refused, as PyTorch's own safe mode does.

A tensor is a view: an offset, sizes and strides, counted in elements of its storage. Several tensors may share a
storage. The arrays read here are views in the same way, and may be not contiguous.

Nothing in a file is run (see `pickles`), and nothing is allocated because a file claims a size: a storage is read
where the file really has its bytes, and a tensor must lie within its storage.
"""

import io
import math
import mmap
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tinyseg.backend import Array
from tinyseg.interop import dtypes, pickles
from tinyseg.interop.dtypes import BYTES, KINDS, Kind
from tinyseg.interop.errors import WeightsError
from tinyseg.interop.pickles import ADVICE, StateDict, Stub

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

STACKED_SIGNATURE = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."  # the first pickle, behind its protocol
ZIP_SIGNATURE = b"PK\x03\x04"
TAR_SIGNATURE, TAR_OFFSET = b"ustar", 257

MAX_SHARING = 16
"""How often, on average, the numbers of the storages may occur in tensors."""

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Where training scripts put the state dict among other things."""


class Storage(NamedTuple):
    """A run of numbers in the file."""

    key: str
    kind: Kind
    numel: int  # of the whole storage, as the file has it
    start: int = 0  # of a view of it
    length: int = 0


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Content(NamedTuple):
    """What was found in a file."""

    arrays: dict[str, Array]
    container: str
    metadata: dict[str, Any]  # what PyTorch keeps beside a state dict, by module
    ignored: tuple[str, ...]  # entries that are no tensors


# ------------------------------------------------------------------------------------- the names in the pickles


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2; what follows the strides concerns gradients."""
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError("a tensor without storage, sizes or strides")
    if len(shape) != len(strides) or not all(_is_size(number) for number in (offset, *shape, *strides)):
        raise ValueError("a tensor with impossible sizes")
    numel = dtypes.count(shape)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if numel > storage.length or (numel and last >= storage.length):
        raise WeightsError(
            f"is damaged: a tensor of the shape {shape} with the strides {strides} does not fit into its storage "
            f"of {storage.length} numbers"
        )
    return Tensor(storage, offset, shape, strides)


def _rebuild_typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3: the storage is plain bytes, and the tensor has the type."""
    kind = more[2].value if len(more) > 2 and type(more[2]) is Stub else None
    if type(storage) is not Storage or type(kind) is not Kind:
        raise TypeError("a tensor without storage or type")
    size = kind.stored.itemsize
    if storage.start % size or storage.numel % size or storage.length % size:
        raise ValueError("bytes left over")
    typed = Storage(storage.key, kind, storage.numel // size, storage.start // size, storage.length // size)
    return _rebuild_tensor(typed, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if type(tensor) is not Tensor:
        raise TypeError("a parameter without a tensor")
    return tensor


def _size(shape: Any = ()) -> tuple:
    return tuple(shape)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number <= dtypes.LARGEST


TABLE: dict[tuple[str, str], Stub] = {
    ("collections", "OrderedDict"): Stub(call=pickles.ordered_dict),
    ("torch._utils", "_rebuild_tensor"): Stub(call=_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Stub(call=_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Stub(call=_rebuild_typed_tensor),
    ("torch._utils", "_rebuild_parameter"): Stub(call=_rebuild_parameter),
    ("torch", "Size"): Stub(call=_size),
    ("torch.storage", "UntypedStorage"): Stub(BYTES),
    **{("torch", kind.storage): Stub(kind) for kind in (*KINDS, BYTES) if kind.storage},
    **{("torch", kind.torch): Stub(kind) for kind in KINDS},
}
"""All that a pickle may name."""


def _storage(identity: Any) -> Storage:
    """A persistent id: ("storage", type, key, device, numel), and in stacked pickles None or a view's place."""
    if type(identity) is not tuple or identity[0] != "storage":
        raise WeightsError(f"refused: it holds a whole module with its source code, not only weights; {ADVICE}")
    if len(identity) not in (5, 6):
        raise TypeError("an impossible storage")
    _, stub, key, _, numel, *view = identity
    if type(stub) is not Stub or type(stub.value) is not Kind or not _is_size(numel):
        raise TypeError("an impossible storage")
    if type(key) is not str or len(key) > 100:
        raise TypeError("an impossible key")
    start, length = 0, numel
    if view and view[0] is not None:
        _, start, length = view[0]
        if not _is_size(start) or not _is_size(length) or start + length > numel:
            raise WeightsError(f"is damaged: a view of the storage {key!r} lies outside of it")
    return Storage(key, stub.value, numel, start, length)


# ------------------------------------------------------------------------------------------------ the containers


def read_zip(file: BinaryIO, file_size: int) -> Content:
    """The first container, from a file open for reading. Raises `WeightsError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, file_size)
    except WeightsError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        ValueError,
        LookupError,
        OverflowError,
        EOFError,
        OSError,
    ) as error:
        raise WeightsError("is damaged: it starts as a zip archive, but cannot be read as one") from error


def _read_archive(archive: zipfile.ZipFile, file_size: int) -> Content:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise WeightsError("refused: its zip archive has two entries of one name")
    if any(name.endswith("/constants.pkl") for name in entries):
        raise WeightsError(f"refused: it is a TorchScript program, not a file of weights; {ADVICE}")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries.values()):
        raise WeightsError("refused: its zip archive is compressed or encrypted, which PyTorch's files are not")
    if sum(entry.file_size for entry in entries.values()) > file_size:
        raise WeightsError("refused: the entries of its zip archive claim more bytes than the file has")

    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightsError("is a zip archive, but not one of PyTorch: it has no data.pkl")
    root = roots[0]
    if f"{root}/byteorder" in entries and archive.read(f"{root}/byteorder").strip() != b"little":
        raise WeightsError("was written on a big-endian machine; save it again on another one")
    if entries[f"{root}/data.pkl"].file_size > pickles.MAX_BYTES:
        raise WeightsError(f"refused: its pickle is larger than {pickles.MAX_BYTES >> 20} MB")

    found = pickles.read(io.BytesIO(archive.read(f"{root}/data.pkl")), TABLE, _storage)

    def fetch(storage: Storage) -> bytes:
        name = f"{root}/data/{storage.key}"
        if name not in entries:
            raise WeightsError(f"is damaged: the storage {storage.key!r} is missing")
        _check_length(storage, entries[name].file_size)
        return archive.read(name)

    return _content(found, fetch, "zip")


def read_stacked(mapped: mmap.mmap) -> Content:
    """The second container, from a file mapped into memory. Raises `WeightsError`."""
    stream = io.BytesIO(mapped[: pickles.MAX_BYTES])
    magic, protocol = pickles.read(stream, {}), pickles.read(stream, {})
    if (magic, protocol) != (MAGIC, PROTOCOL):
        raise WeightsError("is damaged: its magic number or protocol is wrong")
    machine = pickles.read(stream, {})
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise WeightsError("was written on a big-endian machine, or is damaged; save it again on another one")
    storages: dict[str, Storage] = {}

    def remember(identity: Any) -> Storage:
        storage = _storage(identity)
        first = storages.setdefault(storage.key, storage)
        if (first.kind, first.numel) != (storage.kind, storage.numel):
            raise WeightsError(f"is damaged: the storage {storage.key!r} has two sizes or types")
        return storage

    found = pickles.read(stream, TABLE, remember)
    keys = pickles.read(stream, {})
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise WeightsError("is damaged: its list of storages is wrong")

    places: dict[str, tuple[int, int]] = {}
    position = stream.tell()
    for key in keys:
        if key not in storages:
            raise WeightsError(f"is damaged: nothing refers to the storage {key!r}")
        numel = int.from_bytes(mapped[position : position + 8], "little", signed=True)
        begin, size = position + 8, storages[key].kind.stored.itemsize
        position = begin + numel * size
        if numel < 0 or position > len(mapped):
            raise WeightsError(f"is damaged: the storage {key!r} goes beyond the end of the file")
        places[key] = (begin, position)

    def fetch(storage: Storage) -> bytes:
        if storage.key not in places:
            raise WeightsError(f"is damaged: the storage {storage.key!r} is missing")
        begin, end = places[storage.key]
        _check_length(storage, end - begin)
        return mapped[begin:end]

    return _content(found, fetch, "stacked pickles")


def _check_length(storage: Storage, available: int) -> None:
    wanted = storage.numel * storage.kind.stored.itemsize
    if wanted != available:
        raise WeightsError(
            f"is damaged: the storage {storage.key!r} should have {wanted} bytes, the file has {available}"
        )


# -------------------------------------------------------------------------------------------- from views to arrays


def _content(found: Any, fetch: Callable[[Storage], bytes], container: str) -> Content:
    state = _state_dict(found)
    tensors = {str(name): value for name, value in state.items() if type(value) is Tensor}
    if len(tensors) != sum(type(value) is Tensor for value in state.values()):
        raise WeightsError("is damaged: two tensors have one name")
    _check_sharing(list(tensors.values()))
    storages: dict[tuple[str, str], Array] = {}
    arrays = {}
    for name, tensor in tensors.items():
        key = (tensor.storage.key, tensor.storage.kind.torch)
        if key not in storages:
            storages[key] = dtypes.decoded(fetch(tensor.storage), tensor.storage.kind)
        arrays[name] = _view(storages[key], tensor)
    metadata = state.metadata if type(state) is StateDict and isinstance(state.metadata, dict) else {}
    ignored = tuple(str(name) for name in state if str(name) not in arrays)
    return Content(arrays, container, metadata, ignored)


def _state_dict(found: Any) -> dict:
    """The dict of tensors: the object itself, or what a training script put under a usual name."""
    if isinstance(found, dict):
        for candidate in (found, *(found.get(name) for name in WRAPPERS)):
            if isinstance(candidate, dict) and any(type(value) is Tensor for value in candidate.values()):
                return candidate
        keys = ", ".join(repr(key)[:40] for key in list(found)[:8])
        raise WeightsError(f"holds no state dict: its entries are {keys or 'none'}")
    raise WeightsError("holds no state dict, that is, no dict of tensors by name")


def _check_sharing(tensors: list[Tensor]) -> None:
    """Tensors that share a storage cost nothing here, but each gets memory of its own in a new file."""
    stored = {(tensor.storage.key, tensor.storage.numel) for tensor in tensors}
    if sum(math.prod(tensor.shape) for tensor in tensors) > MAX_SHARING * sum(numel for _, numel in stored):
        raise WeightsError(f"refused: its tensors hold the same numbers more than {MAX_SHARING} times over")


def _view(storage: Array, tensor: Tensor) -> Array:
    if math.prod(tensor.shape) == 0:
        return np.empty(tensor.shape, storage.dtype)
    start = tensor.storage.start + tensor.offset
    strides = tuple(stride * storage.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(storage[start:], tensor.shape, strides, writeable=False)
