"""Convolutions whose channels fill little of a block's tile, or not in whole runs, on the GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinyseg import cuda, ops
from tinyseg.ops import geometry
from tinyseg.ops.conv2d import algorithms
from tinyseg.ops.conv2d.padded import Padded


def both_passes(algo="auto", **options) -> Callable[..., Any]:
    def run(x, w, b, dy):
        y, cache = ops.conv2d(x, w, b, algo=algo if cuda.on_gpu(x) else "auto", **options)
        return y, *ops.conv2d_backward(dy, cache)

    return run


def arrays(machine, x_shape, w_shape, dtype, **options):
    x = machine.numbers(*x_shape, dtype=dtype)
    w, b = (machine.numbers(*shape, dtype=cuda.real(dtype)) for shape in (w_shape, w_shape[3:]))
    return x, w, b, machine.numbers(*ops.conv2d(x.astype(w.dtype), w, **options)[0].shape, dtype=dtype)


def check(machine, x_shape, w_shape, dtype, algo="auto", **options):
    machine.agree(both_passes(algo, **options), *arrays(machine, x_shape, w_shape, dtype, **options))


@pytest.mark.parametrize("groups", [1, 3])
def test_weights_are_turned_in_squares(machine, dtype, groups):
    """32 x 32 of them at a time, of each tap and group."""
    check(machine, (1, 2, 3, 34 * groups), (2, 1, 34, 65 * groups), dtype, "implicit_gemm", groups=groups)


@pytest.mark.parametrize("channels", [1, 3, 15])
def test_weight_gradients_of_few_rows(machine, dtype, channels):
    """9, 27 and 135 rows: some warps of a tile have none."""
    check(machine, (2, 5, 6, channels), (3, 3, channels, 5), dtype, "implicit_gemm", padding=1)


# ------------------------------------------------------------------------------------------------- padded channels


@pytest.fixture
def pads(monkeypatch):
    """Small convolutions are padded, too."""
    monkeypatch.setattr(algorithms, "PADDING_WINS_FROM_SUMS", 0)
    monkeypatch.setattr(algorithms, "PADDING_WINS_FROM_TERMS", 0)


def chosen(w_shape, size, images=8, dtype: Any = np.float32, padding=0, **options):
    """With the name of what it pads for."""
    window = geometry.window("conv2d", size, w_shape[:2], 1, padding, **options)
    x, w = cuda.to_device(np.zeros((images, 1, 1, 1), dtype)), cuda.to_device(np.zeros(w_shape, cuda.real(dtype)))
    algorithm = algorithms.choose("auto", x, w, 1, window)
    return ("padded", algorithm.product) if isinstance(algorithm, Padded) else algorithm


def test_channels_are_padded_where_that_wins(machine, host):
    halo_tiles, tensor_cores = (("padded", a) for a in (algorithms.halo_tiles, algorithms.tensor_cores))
    implicit_gemm = algorithms.implicit_gemm
    with cuda.on(machine.devices[0]):
        assert chosen((3, 3, 3, 64), (256, 256), padding=1) == halo_tiles
        assert chosen((3, 3, 64, 12), (256, 256), padding=1) is algorithms.halo_tiles
        assert chosen((3, 3, 64, 11), (360, 480), padding=1) == halo_tiles
        assert chosen((3, 3, 2048, 21), (33, 33), padding=6, dilation=6) == tensor_cores
        assert chosen((1, 1, 256, 21), (129, 129)) == tensor_cores
        assert chosen((1, 1, 64, 21), (512, 512)) is implicit_gemm  # short sums
        assert chosen((1, 1, 256, 21), (33, 33)) is implicit_gemm  # few pixels
        assert chosen((3, 3, 2047, 21), (65, 65), padding=6, dilation=6) is implicit_gemm  # on both sides
        assert chosen((3, 3, 2048, 21), (33, 33), dtype=np.float64, padding=6, dilation=6) is implicit_gemm
    older = host()
    older.capability = 75
    with cuda.on(older):
        assert chosen((1, 1, 256, 21), (129, 129)) is implicit_gemm


PADDED = {
    "classes": ((2, 9, 8, 8), (3, 2, 8, 21), {"padding": 1, "stride": (2, 1)}),
    "one class, 1 x 1": ((1, 7, 20, 16), (1, 1, 16, 1), {}),
    "classes, halo tiles": ((1, 16, 14, 8), (3, 3, 8, 5), {"padding": (1, 1, 2, 1)}),
    "an image": ((2, 9, 7, 3), (3, 3, 3, 8), {"padding": 2, "dilation": (2, 3)}),
    "an image, halo tiles": ((1, 16, 16, 3), (3, 3, 3, 8), {"padding": 1}),
}


@pytest.mark.usefixtures("pads")
@pytest.mark.parametrize("case", PADDED.values(), ids=PADDED.keys())
def test_padded(machine, case):
    x_shape, w_shape, options = case
    check(machine, x_shape, w_shape, np.dtype(np.float32), **options)


@pytest.mark.usefixtures("pads")
def test_padded_in_bfloat16_to_eights(machine, bfloat16):
    with cuda.on(machine.devices[0]):
        assert chosen((3, 3, 8, 12), (16, 16), dtype=bfloat16, padding=1) == ("padded", algorithms.halo_tiles)
    check(machine, (1, 16, 15, 8), (3, 3, 8, 12), bfloat16, padding=1)
    check(machine, (1, 5, 4, 12), (1, 1, 12, 16), bfloat16)


@pytest.mark.usefixtures("pads")
def test_padded_transposed(machine):
    def both(x, w, b, dy):
        y, cache = ops.conv_transpose2d(x, w, b, stride=2)
        return y, *ops.conv_transpose2d_backward(dy, cache)

    shapes = (1, 4, 5, 8), (2, 2, 3, 8), (3,), (1, 8, 10, 3)
    machine.agree(both, *(machine.numbers(*shape, dtype=np.float32) for shape in shapes))


@pytest.mark.usefixtures("pads")
@pytest.mark.parametrize("case", ["classes", "an image, halo tiles"])
def test_without_bias_and_with_the_gradients_that_are_needed(machine, case):
    x_shape, w_shape, options = PADDED[case]

    def both(x, w, dy):
        y, cache = ops.conv2d(x, w, **options)
        return y, *ops.conv2d_backward(dy, cache, need=(True, False, False))

    x, w, _, dy = arrays(machine, x_shape, w_shape, np.dtype(np.float32), **options)
    machine.agree(both, x, w, dy)


@pytest.mark.usefixtures("pads")
@pytest.mark.parametrize("case", PADDED.values(), ids=PADDED.keys())
def test_infinities_and_nan_stay_where_they_are(machine, case):
    x_shape, w_shape, options = case
    x, w, b, dy = arrays(machine, x_shape, w_shape, np.dtype(np.float32), **options)
    x[0, 3, 4, 0], dy[0, 1, 2, -1], w[0, 0, 0, -1] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        expected = both_passes(**options)(x, w, b, dy)
    with cuda.on(machine.devices[0]):
        results = both_passes(**options)(*map(cuda.to_device, (x, w, b, dy)))
        for result, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(np.isfinite(cuda.to_host(result)), np.isfinite(right))


@pytest.mark.usefixtures("pads")
@pytest.mark.parametrize("case", ["classes", "an image, halo tiles"])
def test_padded_convolutions_are_recorded(machine, case):
    x_shape, w_shape, options = PADDED[case]
    with cuda.on(machine.devices[0]):
        first, second = (arrays(machine, x_shape, w_shape, np.dtype(np.float32), **options) for _ in range(2))
        places = [cuda.to_device(array) for array in first]
        both_passes(**options)(*places)
        with cuda.record() as graph:
            recorded = both_passes(**options)(*places)
        for place, array in zip(places, second, strict=True):
            cuda.write(place, array)
        graph.launch()
        for result, right in zip(recorded, both_passes(**options)(*map(cuda.to_device, second)), strict=True):
            np.testing.assert_array_equal(cuda.to_host(result), cuda.to_host(right))
