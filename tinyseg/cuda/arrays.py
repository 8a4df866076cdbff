"""Arrays on the GPU: there and back, and as kernels take them.

CuPy can convert arrays, and put them into C order, by kernels of its own. It has to find CUDA's header files for
that, which many machines do not have. The kernels beside this file need none.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tinyseg.backend import Array
from tinyseg.cuda import device
from tinyseg.cuda.arguments import ALIGNMENT
from tinyseg.cuda.errors import CudaError
from tinyseg.cuda.kernels import KernelFile

ELEMENTS = {
    "bool": "bool",
    "uint8": "uint8",
    "int32": "int",
    "int64": "int64",
    "float32": "float",
    "float64": "double",
    "bfloat16": "bfloat16",
}
"""What kernels call the types that arrays may have here."""

_cuda = KernelFile(__file__, scalars=["float"], ELEMENT=tuple(ELEMENTS.values()))


def on_gpu(array: Any) -> bool:
    """Whether an array is on a GPU."""
    return hasattr(type(array), "__cuda_array_interface__")  # of an array, CuPy would put it together each time


def to_device(array: np.ndarray) -> Array:
    """A copy on the GPU."""
    return device.current().upload(np.asarray(array))


def to_host(array: Array) -> np.ndarray:
    """A copy as a NumPy array, once all kernels that write to it are done. A NumPy array is returned as it is."""
    if not on_gpu(array):
        return array
    return device.current().download(array if array.flags.c_contiguous else _gathered(array))


def place_like(array: np.ndarray, like: Array) -> Array:
    """A NumPy array where `like` is: itself on the CPU, a copy on the GPU."""
    return to_device(array) if on_gpu(like) else array


def write(target: Array, source: Array) -> None:
    """Overwrite an array, wherever it is, with one of its shape and type from there or from the host."""
    if target.shape != source.shape:
        raise ValueError(f"write: the arrays must have one shape, got {target.shape} and {source.shape}")
    if on_gpu(target):
        if on_gpu(source) and source.dtype != target.dtype:
            raise TypeError(f"write: the arrays must have one type, got {target.dtype} and {source.dtype}")
        if not target.flags.c_contiguous:
            raise ValueError(f"write: an array on the GPU must be C-contiguous, got strides {target.strides}")
        if device.current().is_recording and not on_gpu(source):
            raise CudaError(
                "write: numbers of the host are written before a graph is launched, not recorded into it"
            )
        device.current().write(target, contiguous(source) if on_gpu(source) else source)
    else:
        target[...] = source


def start_upload(array: np.ndarray) -> Array:
    """As `to_device`, but kernels may run meanwhile. The copy is there after the next `finish_uploads`."""
    return device.current().start_upload(array)


def finish_uploads() -> None:
    """Kernels that are started from now on wait for everything that `start_upload` was given."""
    device.current().finish_uploads()


# ------------------------------------------------------------------------------------- constants


def constant(table: np.ndarray) -> Array:
    """A small table on the GPU. It is kept, so that the next call with the same numbers copies nothing."""
    if device.current().is_recording:
        return to_device(table)  # the graph keeps it as long as it needs it
    return _constant(device.current(), table.tobytes(), table.shape, table.dtype)


@lru_cache(maxsize=1024)
def _constant(machine: device.Device, content: bytes, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    return machine.upload(np.frombuffer(content, dtype).reshape(shape))


def constant_like(array: np.ndarray, like: Array) -> Array:
    """The same for a small table of numbers that stay as they are, in the type of `like`: see `constant`."""
    array = array.astype(like.dtype, copy=False)
    return constant(array) if on_gpu(like) else array


# ------------------------------------------------------------------------------------- for kernels


def empty(shape: Sequence[int], dtype: np.dtype) -> Array:
    """A new array on the GPU, with anything in it: the kernel must fill all of it."""
    return device.current().empty(shape, dtype)


def contiguous(array: Array, dtype: np.dtype | type | None = None) -> Array:
    """An array on the GPU as kernels take it, copied if it is not so: in C order, beginning at a 16-byte boundary,
    and if a type is given, of this type.

    Numbers are rounded to a type as `astype` of NumPy does it.
    """
    machine = device.current()
    if not machine.owns(array):
        raise TypeError(f"the operator's arrays must all be on the GPU, got {type(array).__name__}; use to_device")
    if not array.flags.c_contiguous or machine.address(array) % ALIGNMENT:
        array = _gathered(array)
    return array if dtype is None or array.dtype == dtype else _converted(array, np.dtype(dtype))


def astype(array: Array, dtype: np.dtype | type) -> Array:
    """An array in another type, where it is, or itself if it has this one."""
    if array.dtype == dtype:
        return array
    return contiguous(array, dtype) if on_gpu(array) else array.astype(dtype)


def reshape(array: Array, shape: tuple[int, ...]) -> Array:
    """An array in another shape, where it is, in C order. It is a view of the array if that is contiguous."""
    return (contiguous(array) if on_gpu(array) else array).reshape(shape)


def copied(array: Array) -> Array:
    """A copy of an array, where that is, in C order."""
    if not on_gpu(array):
        return np.array(array, order="C")
    if not array.flags.c_contiguous:
        return _gathered(array)
    copy = empty(array.shape, array.dtype)
    device.current().write(copy, array)
    return copy


def address(array: Array) -> int:
    """Where an array begins in the GPU's memory, for tables of arrays that one launch works on."""
    return device.current().address(array)


def _gathered(array: Array) -> Array:
    sizes, strides = _merged(array.shape, array.strides)
    to = empty(array.shape, array.dtype)
    axes = constant(np.array([sizes, strides], np.int64))
    arguments = (device.current().address(array), axes, len(sizes), to, to.size)
    _cuda.launch("gather", *arguments, threads=to.size, ELEMENT=_element(array))
    return to


def _merged(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The same places in the same order with as few axes as possible, and at least one."""
    sizes, steps = [1], [0]
    for size, step in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if sizes[-1] == 1 or steps[-1] == size * step:  # where one ends the other goes on
            sizes[-1], steps[-1] = sizes[-1] * size, step
        else:
            sizes.append(size)
            steps.append(step)
    return sizes, steps


def _converted(array: Array, dtype: np.dtype) -> Array:
    kernel = f"to_{dtype.name}"
    if kernel not in _cuda.kernels:
        raise TypeError(f"arrays on the GPU cannot be converted to {dtype}, only to {', '.join(ELEMENTS)}")
    to = empty(array.shape, dtype)
    _cuda.launch(kernel, array, to, to.size, threads=-(-to.size // 4), ELEMENT=_element(array))
    return to


def _element(array: Array) -> str:
    if array.dtype.name not in ELEMENTS:
        raise TypeError(
            f"an array of {array.dtype} on the GPU can be neither converted nor put into C order, only one of "
            f"{', '.join(ELEMENTS)}; do it before to_device"
        )
    return ELEMENTS[array.dtype.name]
