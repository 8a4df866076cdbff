"""Operators on an NVIDIA GPU.

    x = cuda.to_device(x)                     # a CuPy array
    y, cache = ops.conv2d(x, w, b)            # runs on the GPU, since its arrays are there
    y = cuda.to_host(y)                       # a NumPy array

CuPy holds the memory and starts the kernels; the kernels are the `.cu` files beside the operators. They are
compiled when they are first launched. An operator's launcher looks like this:

    _cuda = cuda.KernelFile(__file__)         # relu.cu beside relu.py

    def _forward_cuda(x, slope):
        x = cuda.contiguous(x)
        y = cuda.empty(x.shape, x.dtype)
        _cuda.launch("relu_forward", x, slope, y, x.size, threads=cuda.quads(x.size))
        return y

Parts: `signature` reads what kernels take from their source, `kernels` checks and launches, `device` is what it
launches on, `gpu` that device through CuPy, `nvrtc` the compiler, `machine` what is missing on this computer,
`precision` how exactly tensor cores multiply.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tinyseg.backend import Array
from tinyseg.cuda import device
from tinyseg.cuda.device import Memory, on
from tinyseg.cuda.errors import CudaError, OutOfMemory
from tinyseg.cuda.kernels import ALIGNMENT, KernelFile
from tinyseg.cuda.precision import allow_tf32, tf32_is_allowed

__all__ = [
    "CudaError",
    "KernelFile",
    "Memory",
    "OutOfMemory",
    "allow_tf32",
    "capability",
    "constant",
    "contiguous",
    "empty",
    "lanes",
    "memory",
    "on",
    "pack_width",
    "quads",
    "tf32_is_allowed",
    "tile",
    "to_device",
    "to_host",
]


def to_device(array: np.ndarray) -> Array:
    """A copy on the GPU."""
    return device.current().upload(np.asarray(array))


def to_host(array: Array) -> np.ndarray:
    """A copy as a NumPy array, once all kernels that write to it are done. A NumPy array is returned as it is."""
    return array if isinstance(array, np.ndarray) else device.current().download(array)


def capability() -> int:
    """The compute capability of the GPU: 90 is 9.0."""
    return device.current().capability


def memory() -> Memory:
    """How much of the GPU's memory is in use. `print(cuda.memory())` says it in words."""
    return device.current().memory()


# ------------------------------------------------------------------------------------------------- for launchers


def empty(shape: Sequence[int], dtype: np.dtype) -> Array:
    """A new array on the GPU, with anything in it: the kernel must fill all of it."""
    return device.current().empty(shape, dtype)


def contiguous(array: Array) -> Array:
    """The array as kernels take it, copied if it is not: in C order, beginning at a 16-byte boundary."""
    machine = device.current()
    if not machine.owns(array):
        raise TypeError(f"the operator's arrays must all be on the GPU, got {type(array).__name__}; use to_device")
    if array.flags.c_contiguous and machine.address(array) % ALIGNMENT == 0:
        return array
    return array.copy()


def quads(count: int) -> int:
    """How many threads an element-wise kernel needs, four elements for each."""
    return -(-count // 4)


def lanes(count: int, each: int = 1) -> int:
    """How many lanes of a warp share a row of `count` elements, so that each has up to `each` of them if they are
    enough: a power of 2 up to 32."""
    return min(32, 1 << (-(-count // each) - 1).bit_length())


def tile(pixels: int, channels: int, threads: int = 256) -> tuple[int, tuple[int, int]]:
    """How blocks of threads share pixels and channels, one thread for each channel of each pixel.

    Returns how many threads of a block stand side by side along the channels (a power of 2, what spot_of_thread
    takes), and the blocks along pixels and along channels.
    """
    width = min(threads, 1 << (channels - 1).bit_length())
    return width, (-(-pixels * width // threads), -(-channels // width))


def constant(table: np.ndarray) -> Array:
    """A small table on the GPU. It is kept, so that the next call with the same numbers copies nothing."""
    return _constant(device.current(), table.tobytes(), table.shape, table.dtype.str)


@lru_cache(maxsize=1024)
def _constant(machine: device.Device, content: bytes, shape: tuple[int, ...], dtype: str) -> Array:
    return machine.upload(np.frombuffer(content, dtype).reshape(shape))


def pack_width(channels: int) -> int:
    """How many neighbouring channels a thread takes at once, for files with WIDTH=(1, 4)."""
    return 4 if channels % 4 == 0 else 1
