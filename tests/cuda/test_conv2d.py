"""The CUDA kernels of convolution and of transposed convolution."""

import numpy as np
import pytest

from tinyseg import ops
from tinyseg.ops.conv2d import gather

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
    w = machine.numbers(*kernel, channels // options.get("groups", 1), out_channels, dtype=dtype)
    b = machine.numbers(out_channels, dtype=dtype)
    dy = machine.numbers(*ops.conv2d(x, w, **options)[0].shape, dtype=dtype)
    machine.agree(lambda *arrays: run(*arrays, algo, options), x, w, b, dy, **settings)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_implicit_gemm(machine, dtype, case):
    check(machine, case, dtype, "implicit_gemm")


def test_sums_over_pixels_in_several_parts(machine, dtype):
    check(machine, (2, 24, 17, 3, 5, (2, 3), {}), dtype, "implicit_gemm")
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
def test_depthwise(machine, dtype, case):
    check(machine, case, dtype)


def test_depthwise_sums_over_pixels_in_several_parts(machine, dtype):
    check(machine, (2, 40, 33, 36, 36, (1, 2), {"groups": 36}), dtype)
    assert gather.parts(2 * 40 * 32, blocks=1, elements=72, shortest=16 * 256 // 16)[0] > 3


def test_depthwise_takes_groups_of_one_channel(machine):
    x, w = machine.numbers(1, 3, 3, 4), machine.numbers(1, 1, 2, 2)

    def on_gpu(x, w):
        if not isinstance(x, np.ndarray):
            with pytest.raises(
                ValueError, match=r"'depthwise' takes groups of one channel, but w .* shape .1, 1, 2, 2"
            ):
                ops.conv2d(x, w, groups=2, algo="depthwise")
        return ops.conv2d(x, w, groups=2)[0]

    machine.agree(on_gpu, x, w)


TRANSPOSED = {
    "2 x 2 with stride 2": (1, 5, 7, 8, 4, (2, 2), {"stride": 2}),
    "overlapping": (2, 4, 3, 3, 5, (4, 3), {"stride": (2, 1), "padding": 1, "output_padding": (1, 0)}),
    "depthwise": (1, 4, 5, 3, 3, (4, 4), {"stride": 2, "padding": 1, "groups": 3}),
    "dilated, in groups": (1, 5, 4, 6, 4, (3, 2), {"stride": 3, "dilation": 2, "groups": 2, "output_padding": 2}),
}


@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED.keys())
def test_transposed(machine, dtype, case):
    images, height, width, channels, out_channels, kernel, options = case
    x = machine.numbers(images, height, width, channels, dtype=dtype)
    w = machine.numbers(*kernel, out_channels // options.get("groups", 1), channels, dtype=dtype)
    b = machine.numbers(out_channels, dtype=dtype)
    dy = machine.numbers(*ops.conv_transpose2d(x, w, **options)[0].shape, dtype=dtype)

    def both(x, w, b, dy):
        y, cache = ops.conv_transpose2d(x, w, b, **options)
        return y, *ops.conv_transpose2d_backward(dy, cache)

    machine.agree(both, x, w, b, dy)


def test_algorithms_of_the_other_kind_of_array(machine):
    x, w = machine.numbers(1, 3, 3, 1), machine.numbers(1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"algo 'implicit_gemm' is not for arrays on the CPU; choose 'auto' or"):
        ops.conv2d(x, w, algo="implicit_gemm")

    def on_gpu(x, w):
        if not isinstance(x, np.ndarray):
            with pytest.raises(ValueError, match=r"algo 'patches' is not for arrays on the GPU; choose 'auto' or"):
                ops.conv2d(x, w, algo="patches")
        return ops.conv2d(x, w)[0]

    machine.agree(on_gpu, x, w)


def test_too_many_pixels():
    assert gather.pixel_count(8, 16000, 16000) == 2_048_000_000
    with pytest.raises(OverflowError, match="up to 2\\^31 pixels, got 2560000000; split the batch"):
        gather.pixel_count(10, 16000, 16000)
