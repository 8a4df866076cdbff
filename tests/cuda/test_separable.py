"""The CUDA kernel of resize, pad and crop."""

import numpy as np
import pytest

from tinyseg import ops


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "nearest-exact"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 3, 5, 1), (6, 10)), ((1, 7, 4, 8), (5, 9)), ((1, 1, 3, 70), (4, 1)), ((2, 9, 8, 3), (2, 3))],
)
def test_resize(machine, stored, shape, size, mode, align_corners):
    def both(x, dy):
        y, cache = ops.resize(x, size, mode=mode, align_corners=align_corners)
        return y, ops.resize_backward(dy, cache)

    machine.agree(
        both, machine.numbers(*shape, dtype=stored), machine.numbers(shape[0], *size, shape[3], dtype=stored)
    )


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("channels", [3, 8])
def test_pad_and_crop(machine, stored, mode, channels):
    def both(x, dy):
        y, cache = ops.pad(x, (1, 2, 0, 3), mode=mode, value=0.5)
        z, crop_cache = ops.crop(x, (1, 0, 2, 1))
        return y, ops.pad_backward(y, cache), z, ops.crop_backward(dy, crop_cache)

    x, dy = machine.numbers(2, 4, 5, channels, dtype=stored), machine.numbers(2, 3, 2, channels, dtype=stored)
    machine.agree(both, x, dy)


@pytest.mark.parametrize("size", [(5, 6), (9, 14), (3, 4)])
def test_infinity_and_nan_stay_where_they_are(machine, dtype, size):
    x = machine.numbers(2, 5, 7, 4, dtype=dtype)
    x[0, 0, 0], x[1, 4, 6, 2], x[1, 2, 3, 1] = np.inf, -np.inf, np.nan

    def enlarged_and_framed(x):
        y, _ = ops.resize(x, size, align_corners=False)
        z, _ = ops.pad(x, (1, 2, 3, 0), mode="constant", value=0.0)
        return y, z

    machine.agree(enlarged_and_framed, x)
