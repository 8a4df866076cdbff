"""The kernels of depthwise convolution for 3 x 3 with stride 1, and when others take over. See test_conv2d.py."""

import pytest

from tinyseg import cuda, ops
from tinyseg.ops import geometry
from tinyseg.ops.conv2d import depthwise, gather

GENERAL = ["depthwise_product", "depthwise_product", "depthwise_weight_gradient"]  # forward, then the gradients
FOR_3X3 = ["depthwise_3x3", "depthwise_3x3", "depthwise_3x3_weight_gradient"]


@pytest.fixture
def check(machine, monkeypatch):
    """check(shape, dtype, kernels): a convolution and its gradients are right, and came from these kernels."""
    launched, launch = [], depthwise._cuda.launch

    def listed(kernel, *arguments, **settings):
        launched.append(kernel)
        launch(kernel, *arguments, **settings)

    monkeypatch.setattr(depthwise._cuda, "launch", listed)

    def check(shape, dtype, kernels, *, copies=1, kernel=(3, 3), **options):
        options = {"groups": shape[3], **options}
        channels, real = shape[3] * copies, cuda.real(dtype)
        x, w = machine.numbers(*shape, dtype=dtype), machine.numbers(*kernel, 1, channels, dtype=real)
        b = machine.numbers(channels, dtype=real)
        dy = machine.numbers(*ops.conv2d(x.astype(real), w, **options)[0].shape, dtype=dtype)

        def convolve(x, w, b, dy):
            y, cache = ops.conv2d(x, w, b, algo="depthwise" if cuda.on_gpu(x) else "auto", **options)
            return y, *ops.conv2d_backward(dy, cache)

        launched.clear()
        machine.agree(convolve, x, w, b, dy)
        assert launched == kernels * len(machine.devices)

    return check


# A strip is four rows; a thread takes one channel, or as many as 16 bytes hold. (shape of x, options)
CASES = {
    "one pixel, one channel": ((1, 1, 1, 1), {"padding": 1}),
    "a strip": ((2, 4, 5, 4), {"padding": 1}),
    "one row more than a strip": ((1, 5, 3, 8), {"padding": 1}),
    "less than a strip, three channels": ((3, 3, 7, 3), {"padding": (0, 1, 2, 0)}),
    "without padding": ((1, 9, 4, 4), {}),
    "one column": ((2, 11, 1, 2), {"padding": (2, 0, 1, 1)}),
    "one row": ((1, 1, 13, 4), {"padding": (1, 1, 1, 1)}),
    "padding beyond the image": ((1, 3, 2, 4), {"padding": (7, 4, 3, 6)}),
    "several blocks of columns and channels": ((1, 5, 35, 70), {"padding": 1}),
    "several blocks of columns and packs": ((1, 3, 34, 68), {"padding": 1}),
    "many packs of channels": ((1, 3, 2, 260), {"padding": 1}),
    "dilated": ((2, 13, 10, 4), {"padding": 2, "dilation": 2}),
    "dilated differently": ((1, 12, 9, 6), {"padding": (1, 5, 0, 3), "dilation": (5, 2)}),
    "dilated beyond the image": ((1, 4, 5, 8), {"padding": (9, 6), "dilation": (9, 6)}),
    "dilated across alone": ((1, 7, 8, 4), {"padding": (1, 3), "dilation": (1, 3)}),
}


@pytest.mark.parametrize(("shape", "options"), CASES.values(), ids=CASES.keys())
def test_3x3(check, stored, shape, options):
    check(shape, stored, FOR_3X3, **options)


def test_3x3_sums_over_strips_in_several_parts(check, stored):
    check((2, 38, 33, 36), stored, FOR_3X3, padding=1)
    assert gather.parts(2 * 10 * 33, blocks=1, elements=9 * 36, shortest=4 * 256 // 16)[0] > 3


@pytest.mark.parametrize(
    "options",
    [{"kernel": (3, 2)}, {"kernel": (1, 3)}, {"stride": (1, 2)}, {"stride": 2, "dilation": 2}, {"copies": 2}],
    ids=str,
)
def test_others_have_the_general_kernels(check, dtype, options):
    check((1, 6, 7, 4), dtype, GENERAL, padding=1, **options)


def test_more_strips_than_blocks_have_the_general_kernels(check, dtype, monkeypatch):
    monkeypatch.setattr(depthwise, "LIMIT", 3)
    check((3, 12, 2, 4), dtype, FOR_3X3, padding=1)
    check((3, 13, 2, 4), dtype, GENERAL, padding=1)
    check((4, 12, 2, 4), dtype, GENERAL, padding=1)
    check((3, 5, 2, 4), dtype, GENERAL, padding=4, dilation=4)


@pytest.mark.parametrize(
    "options", [{"dilation": (1, 2**26)}, {"dilation": (2**24, 1)}, {"size": (1, 2**26)}], ids=str
)
def test_steps_of_more_than_32_bits_are_not_for_it(options):
    def fits(size=(1, 4), dilation=(1, 1)):
        window = geometry.window("conv2d", size, 3, 1, dilation, dilation)
        return [depthwise._is_3x3(axes(window), 1, 4) for axes in (gather.forward_axes, gather.data_gradient_axes)]

    assert fits(**options) == [False, False]
    less = {name: tuple(max(1, number - 1) for number in pair) for name, pair in options.items()}
    assert fits(**less) == [True, True]
