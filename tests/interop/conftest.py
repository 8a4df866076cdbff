"""Makes weight files without PyTorch and without the code under test: with the standard library's own pickler."""

import collections
import contextlib
import io
import json
import pickle
import struct
import tracemalloc
import types
import zipfile

import numpy as np
import pytest


class Global:
    """Becomes a reference to an object of any module, which need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Becomes a call of such an object."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Persistent:
    """Becomes a persistent id."""

    def __init__(self, *identity):
        self.identity = identity


class Pickler(pickle._Pickler):
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Persistent):
            self.save(obj.identity)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def pickled(obj, protocol=2) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(obj)
    return stream.getvalue()


STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}


def storage(key, numel, kind="FloatStorage", *view):
    return Persistent("storage", Global("torch", kind), key, "cpu", numel, *view)


def tensor(place, shape, strides, offset=0):
    function = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(function, place, offset, shape, strides, False, collections.OrderedDict())


def contiguous(shape):
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def described(arrays, stacked):
    """A state dict with one storage for each array, and the storages' bytes."""
    state, storages = collections.OrderedDict(), {}
    for number, (name, array) in enumerate(arrays.items()):
        key, view = str(number), (None,) if stacked else ()
        place = storage(key, array.size, STORAGES[array.dtype.name], *view)
        state[name] = tensor(place, array.shape, contiguous(array.shape))
        storages[key] = array.astype(array.dtype.newbyteorder("<")).tobytes()
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    return state, storages


def zipped(obj, storages, *, root="archive", compression=zipfile.ZIP_STORED, **entries) -> bytes:
    """The zip container. `entries` are more of them, by name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", obj if isinstance(obj, bytes) else pickled(obj))
        archive.writestr(f"{root}/byteorder", entries.pop("byteorder", "little"))
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", "3\n")
        for name, content in entries.items():
            archive.writestr(f"{root}/{name}", content)
    return stream.getvalue()


def stacked(obj, storages, sizes, *, little_endian=True) -> bytes:
    """The container of five pickles. `sizes` are the counts of numbers of the storages."""
    machine = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"short": 2, "int": 4}}
    heads = (0x1950A86A20F9469CFC6C, 1001, machine, obj, sorted(storages))
    parts = [head if isinstance(head, bytes) else pickled(head) for head in heads]
    parts += [struct.pack("<q", sizes[key]) + storages[key] for key in sorted(storages)]
    return b"".join(parts)


def pth(arrays, container="zip") -> bytes:
    state, storages = described(arrays, container == "stacked")
    if container == "zip":
        return zipped(state, storages)
    return stacked(state, storages, {str(n): array.size for n, array in enumerate(arrays.values())})


def safetensors(header, data=b"", length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@contextlib.contextmanager
def little_memory(limit=8 << 20):
    """Fails if more than `limit` bytes were in use at once inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes"


@pytest.fixture(scope="session")
def make():
    """The functions above."""
    return types.SimpleNamespace(**{name: value for name, value in globals().items() if callable(value)})


@pytest.fixture(scope="session")
def write(tmp_path_factory):
    """Writes bytes to a file, always the same one, and returns its path."""
    path = tmp_path_factory.mktemp("weights") / "weights.bin"

    def function(content):
        path.write_bytes(content)
        return path

    return function


@pytest.fixture
def example(rng):
    """Arrays of several types and shapes, with the usual ones of a small network among them."""
    return {
        "conv.weight": rng.standard_normal((4, 3, 3, 5)).astype(np.float32),
        "conv.bias": rng.standard_normal(4).astype(np.float32),
        "norm.num_batches_tracked": np.array(17, np.int64),
        "double": rng.standard_normal((2, 3)),
        "half": rng.standard_normal(7).astype(np.float16),
        "flags": np.array([True, False, True]),
        "bytes": np.arange(250, 256, dtype=np.uint8),
        "complex": np.array([1 + 2j, -3.5j], np.complex64),
        "empty": np.zeros((0, 3), np.float32),
    }
