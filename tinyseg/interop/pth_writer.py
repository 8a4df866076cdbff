"""Writes state dicts as PyTorch does: a zip archive that `torch.load(path, weights_only=True)` reads.

The pickle is put together by hand, instruction by instruction, for it names objects of a library that need not be
installed here. A tensor is

    torch._utils._rebuild_tensor_v2(storage, offset=0, size, stride, requires_grad=False, OrderedDict())

whose storage is the persistent id ("storage", torch.FloatStorage, key, "cpu", count of numbers).
"""

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyseg.backend import Array
from tinyseg.interop import dtypes
from tinyseg.interop.errors import WeightsError

ROOT = "archive"
ALIGNMENT = 64
"""Storages start at multiples of it, so that PyTorch can map the file into memory."""

HEADER = 30
"""Bytes of a zip entry's own header, before its name and extra field."""


def write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, Any] | None = None) -> None:
    """Write arrays by name. `metadata` becomes the state dict's `_metadata`: dicts, strings and numbers."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", state_dict_pickle(arrays, metadata or {}))
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            _add(archive, f"data/{key}", dtypes.encoded(array).reshape(-1).view("u1").data)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(f"{ROOT}/{name}")  # with a fixed date: the same weights are the same file
    assert archive.fp is not None
    begin = archive.fp.tell() + HEADER + len(entry.filename)
    filling = -begin % ALIGNMENT
    if 0 < filling < 4:  # an extra field has a head of four bytes
        filling += ALIGNMENT
    if filling:
        entry.extra = struct.pack("<2sH", b"FB", filling - 4) + b"Z" * (filling - 4)
    archive.writestr(entry, content)


def state_dict_pickle(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> bytes:
    """The pickle of an OrderedDict of tensors, whose storages are numbered from "0"."""
    parts = [b"\x80\x02", _ORDERED_DICT, b"("]
    for key, (name, array) in enumerate(arrays.items()):
        parts += [_value(name), _tensor(str(key), array)]
    parts.append(b"u")
    if metadata:
        parts += [b"}", _value("_metadata"), _value(metadata), b"s", b"b"]
    parts.append(b".")
    return b"".join(parts)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


_ORDERED_DICT = _global("collections", "OrderedDict") + b")R"


def _tensor(key: str, array: Array) -> bytes:
    kind = dtypes.kind_of(array)
    if not kind.storage:
        raise WeightsError(f"arrays of type {array.dtype} are not written as .pth; write .safetensors")
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    identity = (_value("storage"), _global("torch", kind.storage), _value(key), _value("cpu"), _value(array.size))
    storage = _tuple(*identity) + b"Q"
    view = (storage, _value(0), _value(array.shape), _value(tuple(strides)), _value(False), _ORDERED_DICT)
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(*view) + b"R"


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _value(value: Any) -> bytes:
    """Pushes a plain value."""
    if isinstance(value, Mapping):
        items = b"".join(_value(key) + _value(item) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, tuple):
        return _tuple(*(_value(item) for item in value))
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    # A number, truth value or None: what Python's own pickle writes between the protocol and the end.
    return pickle.dumps(value, protocol=2)[2:-1]
