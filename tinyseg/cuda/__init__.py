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

Parts: `signature` reads what kernels take from the source, `arguments` checks it, `kernels` launches; `arrays`
brings arrays there and back; `device` is what kernels run on, `gpu` that device through CuPy, `nvrtc` the
compiler, `machine` what is missing on this computer, `precision` how exactly tensor cores multiply.
"""

import contextlib

from tinyseg.cuda import device
from tinyseg.cuda.arrays import (
    address,
    astype,
    constant,
    constant_like,
    contiguous,
    copied,
    empty,
    finish_uploads,
    on_gpu,
    place_like,
    reshape,
    start_upload,
    to_device,
    to_host,
    write,
)
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
    "astype",
    "bfloat16",
    "capability",
    "constant",
    "constant_like",
    "contiguous",
    "copied",
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
    "reshape",
    "start_upload",
    "tf32_is_allowed",
    "tile",
    "to_device",
    "to_host",
    "write",
]


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


def pack_width(channels: int) -> int:
    """How many neighbouring channels a thread takes at once, for files with WIDTH=(1, 4)."""
    return 4 if channels % 4 == 0 else 1
