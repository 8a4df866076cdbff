"""The number types that weight files hold, under the names of both formats.

A bfloat16 is the upper half of a float32: NumPy does not know it, and a shift by 16 bits turns it into one.
"""

import math
from typing import NamedTuple

import numpy as np

from tinyseg.backend import Array
from tinyseg.interop.errors import WeightsError


class Kind(NamedTuple):
    """A number type as it lies in a file."""

    torch: str  # torch.float32 is "float32"
    storage: str  # torch.FloatStorage is "FloatStorage"; "" for the types that have none
    safetensors: str  # "" for a type that the format does not have
    stored: np.dtype  # little-endian


def _kind(torch: str, storage: str, safetensors: str, stored: str) -> Kind:
    return Kind(torch, storage, safetensors, np.dtype(stored))


KINDS = (
    _kind("float32", "FloatStorage", "F32", "<f4"),
    _kind("float64", "DoubleStorage", "F64", "<f8"),
    _kind("float16", "HalfStorage", "F16", "<f2"),
    _kind("bfloat16", "BFloat16Storage", "BF16", "<u2"),
    _kind("int64", "LongStorage", "I64", "<i8"),
    _kind("int32", "IntStorage", "I32", "<i4"),
    _kind("int16", "ShortStorage", "I16", "<i2"),
    _kind("int8", "CharStorage", "I8", "i1"),
    _kind("uint8", "ByteStorage", "U8", "u1"),
    _kind("uint16", "", "U16", "<u2"),
    _kind("uint32", "", "U32", "<u4"),
    _kind("uint64", "", "U64", "<u8"),
    _kind("bool", "BoolStorage", "BOOL", "u1"),
    _kind("complex64", "ComplexFloatStorage", "C64", "<c8"),
    _kind("complex128", "ComplexDoubleStorage", "", "<c16"),
)

BYTES = Kind("", "UntypedStorage", "", np.dtype("u1"))
"""A storage of bytes whose type the tensor tells."""

LARGEST = 2**40
"""More numbers than any weight has; keeps products of sizes from overflowing."""


def kind_of(array: Array) -> Kind:
    """The type of an array that is to be written. Raises `WeightsError` for one that files do not know."""
    for kind in KINDS:
        if kind.torch == array.dtype.name:
            return kind
    raise WeightsError(f"arrays of type {array.dtype} cannot be written; convert them to float32")


def decoded(raw: bytes, kind: Kind) -> Array:
    """The numbers in `raw`, one-dimensional, in the machine's own byte order."""
    values = np.frombuffer(raw, kind.stored)
    if kind.torch == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if kind.torch == "bool":
        return values != 0  # any other byte than 0 and 1 would be an invalid bool
    return values.astype(kind.stored.newbyteorder("="), copy=False)


def encoded(array: Array) -> Array:
    """The array as it is written: row-major and little-endian."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def count(shape: tuple[int, ...]) -> int:
    """How many numbers an array of this shape has. Raises `WeightsError` for a shape that cannot be."""
    if len(shape) > 32 or math.prod(max(length, 1) for length in shape) > LARGEST:
        raise WeightsError("a tensor has an impossible shape")
    return math.prod(shape)
