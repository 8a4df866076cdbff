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

Arrays may be bfloat16, too: half the memory and traffic of float32 (see tinyseg/ops/cast.py). Parameters and their
gradients stay float32, `cuda.real(x.dtype)`. A file of kernels that can do that says WITH_BFLOAT16.

Parts: `signature` reads what kernels take from the source, `arguments` checks it, `kernels` launches; `device` is
what they run on, `gpu` that device through CuPy, `nvrtc` the compiler, `machine` what is missing on this computer,
`precision` how exactly tensor cores multiply.
"""

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tinyseg.backend import Array
from tinyseg.cuda import device
from tinyseg.cuda.arguments import ALIGNMENT
from tinyseg.cuda.device import Graph, Memory, on
from tinyseg.cuda.errors import CudaError, OutOfMemory
from tinyseg.cuda.kernels import WITH_BFLOAT16, KernelFile
from tinyseg.cuda.precision import allow_tf32, tf32_is_allowed
from tinyseg.cuda.signature import bfloat16, real

__all__ = [
    "WITH_BFLOAT16",
    "CudaError",
    "Graph",
    "KernelFile",
    "Memory",
    "OutOfMemory",
    "address",
    "allow_tf32",
    "bfloat16",
    "capability",
    "constant",
    "constant_like",
    "contiguous",
    "empty",
    "finish_uploads",
    "lanes",
    "memory",
    "on",
    "on_gpu",
    "pack_width",
    "place_like",
    "quads",
    "real",
    "record",
    "start_upload",
    "tf32_is_allowed",
    "tile",
    "to_device",
    "to_host",
    "write",
]


def on_gpu(array: Any) -> bool:
    """Whether an array is on a GPU."""
    return hasattr(type(array), "__cuda_array_interface__")  # of an array, CuPy would put it together each time


def to_device(array: np.ndarray) -> Array:
    """A copy on the GPU."""
    return device.current().upload(np.asarray(array))


def to_host(array: Array) -> np.ndarray:
    """A copy as a NumPy array, once all kernels that write to it are done. A NumPy array is returned as it is."""
    return device.current().download(array) if on_gpu(array) else array


def place_like(array: np.ndarray, like: Array) -> Array:
    """A NumPy array where `like` is: itself on the CPU, a copy on the GPU."""
    return to_device(array) if on_gpu(like) else array


def constant_like(array: np.ndarray, like: Array) -> Array:
    """The same for a small table of numbers that stay as they are, in the type of `like`: see `constant`."""
    array = array.astype(like.dtype, copy=False)
    return constant(array) if on_gpu(like) else array


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


def record() -> contextlib.AbstractContextManager[Graph]:
    """Record kernels instead of running them, to start them together again and again: a CUDA graph.

        with cuda.record() as graph:
            y, _ = ops.relu(x)
        cuda.write(x, numbers)
        graph.launch()                    # y is relu(numbers) now

    Starting a kernel costs the host some microseconds, a graph of hundreds hardly more than one. The kernels work
    on the arrays that they were recorded with, at their places: whatever differs from launch to launch has to be
    written there. An array of the host that is copied to the GPU inside the block is a constant of the graph, and
    nothing can be copied to the host. Run the same once before, so that the kernels are compiled. Arrays that are
    made inside the block lie in the graph's memory, and go with it.
    """
    return device.current().record()


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


def address(array: Array) -> int:
    """Where an array begins in the GPU's memory, for tables of arrays that one launch works on."""
    return device.current().address(array)


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
    if device.current().is_recording:
        return to_device(table)  # the graph keeps it as long as it needs it
    return _constant(device.current(), table.tobytes(), table.shape, table.dtype)


@lru_cache(maxsize=1024)
def _constant(machine: device.Device, content: bytes, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    return machine.upload(np.frombuffer(content, dtype).reshape(shape))


def pack_width(channels: int) -> int:
    """How many neighbouring channels a thread takes at once, for files with WIDTH=(1, 4)."""
    return 4 if channels % 4 == 0 else 1
