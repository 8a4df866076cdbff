"""Convolution on a GPU in twelve versions, from the obvious one to the shipped ones.

    python -m benchmarks.ladders.conv2d_cuda

    1  naive             A thread for each number of the result, neighbours along pixels. Neighbouring threads read
                         and write memory far apart: each takes 32 bytes to use 4.
    2  coalesced         Neighbours along channels. A warp reads 128 bytes of weights at once, writes 128 bytes at
                         once, and shares the element of x. Still two reads for each multiplication.
    3  shared tiles      A block copies what it needs to shared memory, where each number is used 16 times. What
                         remains are two reads from shared memory for each multiplication.
    4  register tiles    A thread makes 4 x 4 numbers, and reads half a number for each multiplication. For each
                         element of a patch it divides five times.
    5  implicit_gemm     As shipped for float64: 8 x 4 numbers for each thread, 16 bytes with each read; the place
                         of a patch's element is counted on, and not divided anew.
    6  tensor_cores      As shipped for float32: numbers split in two, three products of each pair on tensor cores,
                         the next slices on their way meanwhile.
    7  ... with TF32     As shipped inside cuda.allow_tf32(): rounded instead of split, one product.
    8  halo_tiles        As shipped for 3 x 3 with stride 1: patches of the image stay in shared memory for all
                         nine taps.
    9  ... with TF32     The same with numbers rounded.
    10 winograd          As shipped for 3 x 3 with stride 1: 16 multiplications instead of 36, on CUDA cores.
    11 tensor_cores, 12 halo_tiles with bfloat16
                         As shipped for arrays of bfloat16: half the bytes, twice as many products at a time.

Each version is compared with the definition in float64 before it is timed, and none that is wrong is timed. The
last eight are not copies: they are what ops.conv2d runs. Times are medians of CUDA events, with inputs larger than
the cache used in turn.

The order of the first steps follows Boehm, "How to optimize a CUDA matmul kernel for cuBLAS-like performance",
2022.
"""

import itertools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import tinyseg
from tinyseg import cuda, ops
from tinyseg.backend import Array

_cuda = cuda.KernelFile(__file__, scalars=["float"])


class Rung(NamedTuple):
    name: str
    run: Callable[[Array, Array], Array]  # x (N, H, W, C), w (R, R, C, O) with an odd R -> y (N, H, W, O)
    tolerance: float  # the largest error, relative to the largest number of the result
    dtype: str = "float32"  # of x and y


def _own(kernel: str, rows: int, columns: int) -> Callable[[Array, Array], Array]:
    """A kernel of this ladder, whose blocks make rows x columns numbers; with 0 columns, any `rows` numbers."""

    def run(x: Array, w: Array) -> Array:
        images, height, width, channels = x.shape
        taps, out_channels = w.shape[0], w.shape[3]
        pixels = images * height * width
        y = cuda.empty((images, height, width, out_channels), x.dtype)
        blocks = (-(-pixels // rows), -(-out_channels // columns)) if columns else -(-y.size // rows)
        _cuda.launch(kernel, x, w, y, images, height, width, channels, out_channels, taps, blocks=blocks)
        return y

    return run


def _shipped(algo: str, tf32: bool = False) -> Callable[[Array, Array], Array]:
    def run(x: Array, w: Array) -> Array:
        with cuda.allow_tf32(tf32):
            return ops.conv2d(x, w, padding=w.shape[0] // 2, algo=algo)[0]

    return run


RUNGS = [
    Rung("1 naive", _own("naive", 256, 0), 1e-5),
    Rung("2 coalesced", _own("coalesced", 256, 0), 1e-5),
    Rung("3 shared tiles", _own("shared_tiles", 16, 16), 1e-5),
    Rung("4 register tiles", _own("register_tiles", 64, 64), 1e-5),
    Rung("5 implicit_gemm", _shipped("implicit_gemm"), 1e-5),
    Rung("6 tensor_cores", _shipped("tensor_cores"), 1e-5),
    Rung("7 tensor_cores with TF32", _shipped("tensor_cores", tf32=True), 3e-3),
    Rung("8 halo_tiles", _shipped("halo_tiles"), 1e-5),
    Rung("9 halo_tiles with TF32", _shipped("halo_tiles", tf32=True), 3e-3),
    Rung("10 winograd", _shipped("winograd"), 1e-5),
    Rung("11 tensor_cores, bfloat16", _shipped("tensor_cores"), 2e-2, "bfloat16"),
    Rung("12 halo_tiles, bfloat16", _shipped("halo_tiles"), 2e-2, "bfloat16"),
]


def validate(rung: Rung, x: np.ndarray, w: np.ndarray) -> float:
    """The largest error of a version, relative to the largest number. Too large a one is an error."""
    with tinyseg.use("numpy"):
        exact = ops.conv2d(x.astype(np.float64), w.astype(np.float64), padding=w.shape[0] // 2)[0]
    y = rung.run(_placed(x, rung.dtype), cuda.to_device(w))
    result = cuda.to_host(ops.cast(y, dtype="float32")[0])
    error = float(np.abs(result - exact).max() / np.abs(exact).max())
    if not error < rung.tolerance:
        raise AssertionError(f"{rung.name} is off by {error:.1e}, more than {rung.tolerance:.0e}")
    return error


def _placed(x: np.ndarray, dtype: str) -> Array:
    """A copy on the GPU in another type."""
    return ops.cast(cuda.to_device(x), dtype=dtype)[0]


def milliseconds(rung: Rung, inputs: list[Array], w: Array, calls: int = 20) -> float:
    """The median time of a call on the GPU, after two that are not counted. Nobody waits between the calls: the
    GPU works while Python prepares the next one."""
    import cupy  # type: ignore[import-not-found]

    marks = [cupy.cuda.Event() for _ in range(calls + 3)]
    marks[0].record()
    for call, mark in enumerate(marks[1:]):
        rung.run(inputs[call % len(inputs)], w)
        mark.record()
    marks[-1].synchronize()
    times = [cupy.cuda.get_elapsed_time(start, end) for start, end in itertools.pairwise(marks)]
    return statistics.median(times[2:])


def main(shape: tuple[int, int, int, int] = (8, 256, 256, 64), out_channels: int = 64) -> None:
    rng = np.random.default_rng(0)
    channels = shape[3]
    small = rng.standard_normal((2, 19, 23, channels)).astype(np.float32)
    w = (rng.standard_normal((3, 3, channels, out_channels)) / np.sqrt(9 * channels)).astype(np.float32)
    images = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    flops = 2 * 9 * np.prod(shape, dtype=np.int64) * out_channels
    print(f"3 x 3, {channels} to {out_channels} channels, {shape[0]} x {shape[1]} x {shape[2]} pixels")
    for rung in RUNGS:
        error = validate(rung, small, w)
        time = milliseconds(rung, [_placed(image, rung.dtype) for image in images], cuda.to_device(w))
        print(f"{rung.name:25} {time:9.3f} ms {flops / time / 1e9:8.1f} TFLOP/s    error {error:.0e}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except cuda.CudaError as error:
        raise SystemExit(f"the ladder needs a GPU: {error}") from None
