"""The CUDA kernels of convolution and of transposed convolution."""

import host_gpu
import numpy as np
import pytest

from tinyseg import cuda, ops
from tinyseg.cuda import allow_tf32
from tinyseg.ops import geometry
from tinyseg.ops.conv2d import algorithms, gather

# Rows of a product come in tiles of 128, columns of 64, the sum in slices of 16: smaller, larger, and none of a
# multiple. (images, height, width, channels, out channels, kernel, options)
CASES = {
    "one pixel": (1, 1, 1, 1, 1, (1, 1), {}),
    "more than a tile of pixels": (2, 9, 11, 4, 5, (3, 3), {"padding": 1}),
    "more than a tile of channels": (1, 5, 4, 8, 68, (1, 2), {}),
    "more than a tile of taps": (1, 6, 7, 20, 8, (3, 3), {"padding": 1}),
    "three channels": (2, 8, 7, 3, 4, (3, 3), {"padding": (0, 2, 1, 0)}),
    "odd channels": (1, 6, 5, 21, 7, (2, 3), {"padding": (1, 0)}),
    "stride and dilation": (2, 11, 13, 4, 3, (3, 2), {"stride": (2, 3), "dilation": (3, 2), "padding": 2}),
    "stride larger than the kernel": (1, 9, 8, 4, 4, (1, 2), {"stride": (3, 4)}),
    "stride with a common divisor of the dilation": (
        *(1, 12, 15, 5, 4, (3, 3)),
        {"stride": (4, 6), "dilation": (2, 4), "padding": 4},
    ),
    "two groups": (1, 7, 6, 8, 12, (3, 3), {"groups": 2, "padding": 1}),
    "odd groups": (1, 5, 6, 9, 6, (2, 2), {"groups": 3, "stride": 2}),
    "dilation beyond the image": (1, 4, 5, 4, 4, (3, 3), {"padding": 6, "dilation": 6}),
}


def run(x, w, b, dy, algo, options):
    if isinstance(x, np.ndarray):
        algo = "auto"  # the reference
    y, cache = ops.conv2d(x, w, b, algo=algo, **options)
    return y, *ops.conv2d_backward(dy, cache)


def check(machine, case, dtype, algo="auto", **settings):
    images, height, width, channels, out_channels, kernel, options = case
    x = machine.numbers(images, height, width, channels, dtype=dtype)
    w = machine.numbers(*kernel, channels // options.get("groups", 1), out_channels, dtype=cuda.real(dtype))
    b = machine.numbers(out_channels, dtype=cuda.real(dtype))
    dy = machine.numbers(*ops.conv2d(x.astype(w.dtype), w, **options)[0].shape, dtype=dtype)
    machine.agree(lambda *arrays: run(*arrays, algo, options), x, w, b, dy, **settings)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_implicit_gemm(machine, stored, case):
    check(machine, case, stored, "implicit_gemm")


def test_sums_over_pixels_in_several_parts(machine, stored):
    check(machine, (2, 24, 17, 3, 5, (2, 3), {}), stored, "implicit_gemm")
    assert gather.parts(2 * 24 * 17, blocks=1, elements=90, shortest=256)[0] == 3


def test_without_bias_and_not_contiguous(machine, dtype):
    def convolve(x, w):
        return ops.conv2d(x.transpose(0, 2, 1, 3)[:, ::2], w)[0]

    machine.agree(convolve, machine.numbers(1, 4, 6, 4, dtype=dtype), machine.numbers(2, 2, 4, 3, dtype=dtype))


DEPTHWISE = {
    "four channels": (2, 6, 7, 4, 4, (3, 3), {"groups": 4, "padding": 1}),
    "odd channels": (1, 5, 9, 3, 3, (2, 4), {"groups": 3, "padding": (0, 1, 2, 1), "dilation": (2, 1)}),
    "many channels": (1, 3, 4, 132, 132, (3, 3), {"groups": 132, "padding": 1}),
    "stride": (2, 7, 9, 8, 8, (3, 5), {"groups": 8, "padding": 2, "stride": (2, 3)}),
    "stride larger than the kernel": (1, 8, 9, 8, 8, (1, 2), {"groups": 8, "stride": 3}),
    "two kernels for each channel": (2, 5, 6, 3, 6, (3, 2), {"groups": 3, "padding": 1, "stride": (1, 2)}),
    "one channel of two groups": (1, 5, 6, 2, 4, (4, 4), {"groups": 2, "padding": 2, "dilation": 2}),
}


@pytest.mark.parametrize("case", DEPTHWISE.values(), ids=DEPTHWISE.keys())
def test_depthwise(machine, stored, case):
    check(machine, case, stored)


def test_depthwise_sums_over_pixels_in_several_parts(machine, stored):
    check(machine, (2, 40, 33, 36, 36, (1, 2), {"groups": 36}), stored)
    assert gather.parts(2 * 40 * 32, blocks=1, elements=72, shortest=16 * 256 // 16)[0] > 3


# The sum comes in slices of 32, three of them on their way.
TENSOR_CORES = {
    "one pixel": (1, 1, 1, 4, 4, (1, 1), {}),
    "a slice of several taps": (2, 9, 8, 4, 8, (3, 3), {"padding": 1}),
    "more than a tile of everything": (1, 5, 27, 36, 68, (2, 2), {"padding": (1, 0, 0, 1)}),
    "stride and dilation": (2, 7, 9, 8, 12, (3, 2), {"stride": (2, 3), "dilation": (3, 2), "padding": 2}),
    "stride larger than the kernel": (1, 7, 8, 4, 4, (1, 2), {"stride": (3, 4)}),
    "two groups": (1, 5, 6, 24, 16, (3, 1), {"groups": 2, "padding": 1}),
    "dilation beyond the image": (1, 5, 4, 32, 4, (3, 3), {"padding": 7, "dilation": 7}),
    "dilation beyond some blocks": (1, 20, 13, 4, 4, (3, 3), {"padding": (12, 12, 3, 3), "dilation": (12, 3)}),
}


@pytest.mark.parametrize("case", TENSOR_CORES.values(), ids=TENSOR_CORES.keys())
def test_tensor_cores_are_as_exact_as_float32(machine, case):
    check(machine, case, np.float32, "tensor_cores", tolerance={np.dtype(np.float32): 3e-6})


def test_tensor_cores_with_tf32(machine):
    with allow_tf32():
        check(
            *(machine, TENSOR_CORES["stride and dilation"], np.float32, "tensor_cores"),
            tolerance={np.dtype(np.float32): 3e-3},
        )


@pytest.mark.parametrize("algo", ["tensor_cores", "halo_tiles"])
@pytest.mark.parametrize("terms", [3, 1])
def test_tensor_cores_keep_what_is_not_a_number(machine, algo, terms):
    """NaN of any bits; infinity may become NaN, see tensor_cores.py."""
    bits = [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFFC00000, 0x7F800000, 0xFF800000]
    x, w = machine.numbers(len(bits), 5, 4, 4, dtype=np.float32), machine.numbers(3, 3, 4, 8, dtype=np.float32)
    dy = machine.numbers(len(bits), 5, 4, 8, dtype=np.float32)
    x[:, 2, 1, 0] = np.array(bits, np.uint32).view(np.float32)
    for device in machine.devices:
        with cuda.on(device), allow_tf32(terms == 1):
            y, cache = ops.conv2d(cuda.to_device(x), cuda.to_device(w), padding=1, algo=algo)
            y, dw = cuda.to_host(y), cuda.to_host(ops.conv2d_backward(cuda.to_device(dy), cache)[1])
        assert not np.isfinite(y[:, 1:4, :3]).any() and np.isfinite(y[:, ::4]).all()
        assert not np.isfinite(dw[:, :, 0]).any() and np.isfinite(dw[:, :, 1:]).all()


def test_tensor_cores_sum_over_pixels_in_several_parts(machine):
    check(machine, (2, 24, 17, 4, 4, (2, 3), {}), np.float32, "tensor_cores")


# The sum comes in slices of 64.
IN_BFLOAT16 = {
    "one pixel": (1, 1, 1, 8, 8, (1, 1), {}),
    "a slice of several taps": (2, 9, 8, 8, 16, (3, 3), {"padding": 1}),
    "more than a tile of everything": (1, 5, 27, 72, 72, (2, 2), {"padding": (1, 0, 0, 1)}),
    "stride and dilation": (2, 7, 9, 8, 16, (3, 2), {"stride": (2, 3), "dilation": (3, 2), "padding": 2}),
    "two groups": (1, 5, 6, 48, 16, (3, 1), {"groups": 2, "padding": 1}),
    "sums in several parts": (2, 24, 17, 8, 8, (2, 3), {}),
}


@pytest.mark.parametrize("case", IN_BFLOAT16.values(), ids=IN_BFLOAT16.keys())
def test_tensor_cores_with_bfloat16(machine, bfloat16, case):
    check(machine, case, bfloat16, "tensor_cores")


def test_gradients_of_parameters_are_float32_beside_bfloat16(machine, bfloat16):
    x, w = machine.numbers(1, 5, 6, 8, dtype=bfloat16), machine.numbers(3, 3, 8, 16, dtype=np.float32)
    with cuda.on(machine.devices[0]):
        y, cache = ops.conv2d(cuda.to_device(x), cuda.to_device(w), cuda.to_device(w[0, 0, 0]))
        dx, dw, db = ops.conv2d_backward(y, cache)
        assert (y.dtype, dx.dtype, dw.dtype, db.dtype) == (bfloat16, bfloat16, np.float32, np.float32)
        with pytest.raises(TypeError, match="all arrays must have one type, but x is bfloat16, w is float64"):
            ops.conv2d(cuda.to_device(x), cuda.to_device(w.astype(np.float64)))


HALO_TILES = {
    "one tile": (1, 14, 15, 16, 16, (3, 3), {"padding": (1, 0, 2, 1)}),
    "more than a tile of pixels": (1, 17, 5, 32, 16, (3, 3), {"padding": 1}),
    "two images, channels in fours": (2, 3, 18, 20, 12, (3, 3), {}),
    "more than a tile of channels": (1, 5, 7, 16, 80, (3, 3), {"padding": 1}),
    "dilation and groups": (1, 9, 8, 32, 80, (3, 3), {"dilation": (1, 2), "padding": (3, 1, 0, 2), "groups": 2}),
}


@pytest.mark.parametrize("case", HALO_TILES.values(), ids=HALO_TILES.keys())
def test_halo_tiles(machine, case):
    check(machine, case, np.float32, "halo_tiles", tolerance={np.dtype(np.float32): 3e-6})


@pytest.mark.parametrize(
    "case",
    [
        (1, 14, 15, 32, 16, (3, 3), {"padding": (1, 0, 2, 1)}),
        (2, 3, 18, 40, 72, (3, 3), {}),
        (1, 17, 8, 48, 48, (3, 3), {"dilation": (1, 2), "padding": (3, 1, 0, 2), "groups": 2}),
    ],
)
def test_halo_tiles_with_bfloat16(machine, bfloat16, case):
    check(machine, case, bfloat16, "halo_tiles")


@pytest.mark.parametrize("name", ["one tile", "more than a tile of channels"])
def test_halo_tiles_with_tf32(machine, name):
    case, tolerance = HALO_TILES[name], {np.dtype(np.float32): 3e-3}
    with allow_tf32():
        check(machine, case, np.float32, "halo_tiles", tolerance=tolerance)


def test_halo_tiles_are_chosen_where_they_are_full(machine):
    def chosen(size, kernel=3, padding=1, dtype=np.float32, **options):
        window = geometry.window("conv2d", size, kernel, 1, padding, **options)
        w = cuda.to_device(np.zeros((*window.kernel, 16, 32), dtype))
        return algorithms.choose("auto", w, w, 1, window)

    with cuda.on(machine.devices[0]):
        assert chosen((32, 48)) is chosen((80, 79)) is chosen((30, 32), padding=2, dilation=2)
        assert chosen((32, 48)) is algorithms.halo_tiles
        assert (
            chosen((33, 33)) is chosen((32, 32), padding=2) is algorithms.tensor_cores
        )  # 2 x 2 tiles, then 3 x 3
        assert chosen((32, 32), kernel=1, padding=0) is algorithms.tensor_cores
        assert chosen((32, 32), padding=3, dilation=3) is algorithms.tensor_cores
        assert chosen((31, 32), padding=2, dtype=np.float64) is algorithms.implicit_gemm


# A block makes 8 x 16 pixels of 64 channels (32 in float64), and takes 8 channels at a time.
WINOGRAD = {
    "one pixel": (1, 1, 1, 1, 1, (3, 3), {"padding": 1}),
    "more than a block of rows": (2, 9, 7, 3, 2, (3, 3), {"padding": 1}),
    "more than a block of columns": (1, 5, 19, 4, 4, (3, 3), {}),
    "more than a block of channels": (1, 3, 5, 5, 65, (3, 3), {"padding": 2}),
    "many slices": (1, 4, 3, 33, 33, (3, 3), {"padding": (0, 2, 1, 0)}),
    "two slices, channels in fours": (2, 3, 6, 12, 36, (3, 3), {"padding": "same"}),
    "padding wider than the kernel": (1, 2, 3, 8, 4, (3, 3), {"padding": (4, 3, 0, 5)}),
}


@pytest.mark.parametrize("case", WINOGRAD.values(), ids=WINOGRAD.keys())
def test_winograd(machine, dtype, case):
    check(machine, case, dtype, "winograd", tolerance={np.dtype(np.float32): 3e-6})


def test_winograd_is_chosen_where_its_blocks_are_full_enough(machine):
    def chosen(size, channels=(64, 64), padding=1, dtype=np.float32, **options):
        window = geometry.window("conv2d", size, 3, 1, padding, **options)
        w = cuda.to_device(np.zeros((3, 3, *channels), dtype))
        return algorithms.choose("auto", w, w, options.get("groups", 1), window)

    with cuda.on(machine.devices[0]):
        assert chosen((64, 64)) is chosen((24, 16)) is chosen((33, 64), (62, 62)) is algorithms.winograd
        assert chosen((64, 64), (64, 48)) is chosen((64, 64), dilation=2) is algorithms.halo_tiles
        assert chosen((33, 33)) is algorithms.tensor_cores  # 5 x 3 blocks
        assert chosen((33, 33), dtype=np.float64) is chosen((33, 33), (62, 62)) is algorithms.winograd
        assert chosen((64, 64), (3, 64)) is chosen((5, 5), dtype=np.float64) is algorithms.implicit_gemm
        with allow_tf32():
            assert chosen((64, 64)) is algorithms.halo_tiles
            assert chosen((64, 64), (62, 62)) is algorithms.winograd


def test_the_choice_of_an_algorithm(machine):
    def chosen(in_group, out_channels, groups=1, dtype=np.float32):
        w = cuda.to_device(np.zeros((3, 3, in_group, out_channels), dtype))
        return algorithms.choose("auto", w, w, groups)

    with cuda.on(machine.devices[0]):
        assert chosen(64, 64) is chosen(4, 4) is chosen(8, 24, groups=2) is algorithms.tensor_cores
        assert chosen(64, 64, dtype=np.float64) is chosen(3, 64) is chosen(64, 21) is algorithms.implicit_gemm
        assert chosen(1, 8, groups=8) is chosen(1, 16, groups=8) is algorithms.depthwise
        assert chosen(1, 8) is algorithms.implicit_gemm


@pytest.mark.parametrize(
    "algo, groups, match",
    [
        ("depthwise", 2, "takes groups of one channel, not of 2; choose 'auto' or 'implicit_gemm'"),
        ("tensor_cores", 2, "multiple of 4 channels on both sides, not 2 and 4; choose"),
        ("tensor_cores", 1, "for float32 and bfloat16, not float64"),
        ("halo_tiles", 1, "'halo_tiles' is not possible: it is for float32 and bfloat16, not float64"),
        ("halo_tiles", 2, "'halo_tiles' is not possible: each group must have a multiple of 4 channels"),
        ("winograd", 2, "'winograd' is not possible: it is for convolutions without groups"),
        ("winograd", 1, "'winograd' is not possible: it is for kernels of 3 x 3 with stride 1"),
        ("halo_tiles", -1, "'halo_tiles' is not possible: it is for kernels of 3 x 3 with stride 1"),
        ("patches", 1, "algo 'patches' is not for arrays on the GPU; choose 'auto' or one of .*'tensor_cores'"),
        ("fast", 1, "unknown algo 'fast'; choose 'auto' or one of .*'tensor_cores'"),
    ],
)
def test_algorithms_that_are_not_possible(machine, algo, groups, match):
    dtype, groups = np.float64 if groups == 1 else np.float32, abs(groups)
    with cuda.on(machine.devices[0]), pytest.raises(ValueError, match=match):
        x, w = (
            cuda.to_device(np.zeros((1, 3, 3, 4), dtype)),
            cuda.to_device(np.zeros((1, 1, 4 // groups, 8), dtype)),
        )
        ops.conv2d(x, w, groups=groups, algo=algo)


@pytest.mark.parametrize("algo", ["tensor_cores", "halo_tiles", "winograd"])
def test_what_older_gpus_cannot_do(host, algo):
    older = host()
    older.capability = 75
    with cuda.on(older):
        x, w = cuda.to_device(np.zeros((1, 8, 16, 4))), cuda.to_device(np.zeros((3, 3, 4, 32)))
        arrays = cuda.astype(x, np.float32), cuda.astype(w, np.float32)
        with pytest.raises(ValueError, match=r"compute capability 8.0, this one has 7.5"):
            ops.conv2d(*arrays, algo=algo)
        assert ops.conv2d(*arrays)[0].shape == (1, 6, 14, 32)
    older.capability, older.shared_limit = 86, 99 * 1024
    if algo != "tensor_cores":
        with cuda.on(older), pytest.raises(ValueError, match="bytes of shared memory, the GPU has 101376"):
            ops.conv2d(*arrays, algo=algo)


def test_algorithms_of_the_gpu_are_not_for_the_cpu():
    with pytest.raises(ValueError, match=r"algo 'implicit_gemm' is not for arrays on the CPU; choose 'auto' or"):
        ops.conv2d(np.zeros((1, 3, 3, 1)), np.zeros((1, 1, 1, 1)), algo="implicit_gemm")


TRANSPOSED = {
    "2 x 2 with stride 2": (1, 5, 7, 8, 4, (2, 2), {"stride": 2}),
    "2 x 2 with stride 2, channels in eights": (1, 5, 7, 16, 8, (2, 2), {"stride": 2}),
    "overlapping": (2, 4, 3, 3, 5, (4, 3), {"stride": (2, 1), "padding": 1, "output_padding": (1, 0)}),
    "depthwise": (1, 4, 5, 3, 3, (4, 4), {"stride": 2, "padding": 1, "groups": 3}),
    "dilated, in groups": (1, 5, 4, 6, 4, (3, 2), {"stride": 3, "dilation": 2, "groups": 2, "output_padding": 2}),
}


@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED.keys())
def test_transposed(machine, stored, case):
    images, height, width, channels, out_channels, kernel, options = case
    x = machine.numbers(images, height, width, channels, dtype=stored)
    w = machine.numbers(*kernel, out_channels // options.get("groups", 1), channels, dtype=cuda.real(stored))
    b = machine.numbers(out_channels, dtype=cuda.real(stored))
    dy = machine.numbers(*ops.conv_transpose2d(x.astype(w.dtype), w, **options)[0].shape, dtype=stored)

    def both(x, w, b, dy):
        y, cache = ops.conv_transpose2d(x, w, b, **options)
        return y, *ops.conv_transpose2d_backward(dy, cache)

    machine.agree(both, x, w, b, dy)


@pytest.mark.parametrize("algo", ["implicit_gemm", "tensor_cores", "halo_tiles", "winograd", "depthwise"])
@pytest.mark.parametrize(
    "images, side", [(2, 7), pytest.param(9, 4096, marks=pytest.mark.gpu)], ids=["rehearsal", "beyond 2^31"]
)
def test_the_last_corner_of_a_large_array(machine, algo, images, side):
    """9 x 4096 x 4096 x 16 are 2.4e9 elements. Only the last corner has numbers, and is looked at."""
    groups = 16 if algo == "depthwise" else 1
    options = {"padding": 1, "groups": groups}
    corner = machine.numbers(1, 6, 6, 16, dtype=np.float32)
    w = machine.numbers(3, 3, 16 // groups, 16, dtype=np.float32)
    expected = ops.conv2d(corner, w, **options)[0][:, 1:, 1:]
    with cuda.on(machine.devices[0]):
        if images > 2 and (isinstance(machine.devices[0], host_gpu.HostGpu) or cuda.memory().free < 32e9):
            pytest.skip("for a GPU with 32 GB of free memory")
        x = np.zeros((images, side, side, 16), np.float32)
        x[-1:, -6:, -6:] = corner
        y = ops.conv2d(cuda.to_device(x), cuda.to_device(w), algo=algo, **options)[0]
        np.testing.assert_allclose(cuda.to_host(y[-1:, -5:, -5:]), expected, rtol=1e-4, atol=1e-4)


def test_too_many_pixels():
    assert gather.pixel_count(8, 16000, 16000) == 2_048_000_000
    with pytest.raises(OverflowError, match="up to 2\\^31 pixels, got 2560000000; split the batch"):
        gather.pixel_count(10, 16000, 16000)
