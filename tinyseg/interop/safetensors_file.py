"""Reads and writes safetensors: a header in JSON, and the numbers.

    8 bytes      N, the length of the header, little-endian
    N bytes      JSON: name -> {"dtype": "F32", "shape": [64, 3, 7, 7], "data_offsets": [begin, end]},
                 and "__metadata__" -> strings by name
    the rest     the numbers, row-major, little-endian; offsets count from here

The tensors lie one behind the other, without gaps or overlaps, to the end of the file. The reader here checks that
before it reads any: the library would do so too, but takes the second of two entries of one name for the only one,
and knows no bfloat16 where NumPy is the target.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyseg.backend import Array
from tinyseg.interop import dtypes
from tinyseg.interop.dtypes import KINDS
from tinyseg.interop.errors import WeightsError
from tinyseg.interop.pth import Content

MAX_HEADER = 16 << 20
"""The format allows 100 MB; this is room for 100,000 tensors."""

BY_NAME = {kind.safetensors: kind for kind in KINDS if kind.safetensors}


def looks_like(start: bytes) -> bool:
    """Whether a file starts as safetensors do: a length, and a brace."""
    return start[8:9] == b"{"


def read(mapped: mmap.mmap) -> Content:
    """The arrays and the metadata. Raises `WeightsError`."""
    length = int.from_bytes(mapped[:8], "little")
    if length > min(MAX_HEADER, len(mapped) - 8):
        raise WeightsError(
            f"is damaged: its header claims {length:,} bytes, of a file of {len(mapped):,} and a limit of "
            f"{MAX_HEADER:,}"
        )
    header = _header(mapped[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise WeightsError("is damaged: its metadata are not strings by name")

    arrays = {}
    expected = 0
    entries = [(name, *_entry(name, value)) for name, value in header.items()]
    for name, kind, shape, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        if begin != expected:
            raise WeightsError(f"is damaged: there is a gap or an overlap before the tensor {name[:100]!r}")
        if end - begin != dtypes.count(shape) * kind.stored.itemsize:
            raise WeightsError(
                f"is damaged: the tensor {name[:100]!r} has a shape that needs other bytes than it has"
            )
        if 8 + length + end > len(mapped):
            raise WeightsError(f"is damaged: the tensor {name[:100]!r} goes beyond the end of the file")
        raw = mapped[8 + length + begin : 8 + length + end]
        arrays[name] = dtypes.decoded(raw, kind).reshape(shape)
        expected = end
    if 8 + length + expected != len(mapped):
        raise WeightsError("is damaged: bytes are left over behind the last tensor")
    return Content({name: arrays[name] for name in header}, "safetensors", metadata, ())


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError("is damaged: its header is no JSON") from error
    if type(header) is not dict:
        raise WeightsError("is damaged: its header is no JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WeightsError("refused: a name occurs twice in its header")
    return result


def _entry(name: str, value: Any) -> tuple[dtypes.Kind, tuple[int, ...], int, int]:
    wrong = WeightsError(f"is damaged: the entry {name[:100]!r} of its header is wrong")
    if type(value) is not dict or set(value) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    shape, offsets = value["shape"], value["data_offsets"]
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise wrong
    if not all(type(number) is int and 0 <= number <= dtypes.LARGEST for number in (*shape, *offsets)):
        raise wrong
    if type(value["dtype"]) is not str:
        raise wrong
    if value["dtype"] not in BY_NAME:
        raise WeightsError(
            f"refused: the tensor {name[:100]!r} is of type {value['dtype'][:20]}, which NumPy does not have; "
            "convert it to float32 first"
        )
    return BY_NAME[value["dtype"]], tuple(shape), offsets[0], offsets[1]


def write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    import safetensors.numpy

    plain = {}
    for name, array in arrays.items():
        if not dtypes.kind_of(array).safetensors:
            raise WeightsError(f"{name} is of type {array.dtype}, which safetensors do not have")
        plain[name] = np.asarray(array, order="C")
    safetensors.numpy.save_file(plain, path, dict(metadata))
