"""The CUDA kernels of max and average pooling, and of unpooling."""

import numpy as np
import pytest

from tinyseg import cuda, ops

OPTIONS = [
    ((1, 4, 6, 1), {"kernel": 2}),
    ((2, 7, 5, 8), {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2, 0, 1)}),
    ((2, 9, 11, 3), {"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 7, 9, 68), {"kernel": (2, 3), "stride": (3, 4)}),
    ((2, 1, 1, 5), {"kernel": 3, "stride": 1, "padding": 1}),
    ((1, 17, 19, 4), {"kernel": (16, 17), "stride": 1}),  # 272 cells: the index needs more than a byte
    # Windows side by side: some leave cells out at the end, some reach over it.
    ((1, 5, 7, 70), {"kernel": 2}),
    ((2, 8, 7, 3), {"kernel": 3, "padding": 1, "ceil_mode": True}),
    ((2, 6, 5, 8), {"kernel": (2, 3), "padding": (1, 0, 0, 2)}),
    ((3, 1, 1, 4), {"kernel": 1}),
    ((1, 1, 1, 1), {"kernel": 3, "padding": (2, 2, 1, 1)}),
    ((1, 33, 40, 4), {"kernel": (16, 17), "padding": 3}),
]


@pytest.mark.parametrize(("shape", "options"), OPTIONS)
def test_max_pool(machine, stored, shape, options):
    def both(x, dy):
        y, cache = ops.max_pool2d(x, **options)
        dy = dy[:, : y.shape[1], : y.shape[2]]
        return y, cache.index, ops.max_pool2d_backward(dy, cache)

    x = machine.rng.integers(-9, 9, shape).astype(stored)  # few values, so that many windows hold equal ones
    machine.agree(both, x, machine.numbers(shape[0], 12, 12, shape[3], dtype=stored))


@pytest.mark.parametrize(("shape", "options"), OPTIONS)
def test_max_unpool(machine, stored, shape, options):
    def both(image, dy):
        pooled, cache = ops.max_pool2d(image, **options)
        y, cache = ops.max_unpool2d(pooled, cache.index, **options, size=shape[1:3])
        return y, ops.max_unpool2d_backward(dy, cache)

    machine.agree(both, machine.numbers(*shape, dtype=stored), machine.numbers(*shape, dtype=stored))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("kernel", "index"),
    [
        ((2, 2), np.array([1, 4, 255], np.uint8)),
        ((2, 2), np.array([1, 4, 256, 257, -1], np.int32)),
        ((16, 16), np.array([1, 256, 257, -1], np.int64)),
        ((16, 17), np.array([1, 272, 65536, -1], np.int64)),
    ],
)
def test_a_number_too_large_points_to_no_cell(machine, kernel, index, overlap):
    """On the CPU that is an error. A GPU would have to be waited for, to see it."""
    options = {"kernel": kernel, "stride": 1 if overlap else None}
    x, dy = machine.numbers(1, 1, 1, index.size), machine.numbers(1, *kernel, index.size)
    expected = np.zeros(dy.shape)
    expected[0, 0, 1, 0] = x[0, 0, 0, 0]
    for device in machine.devices:
        with cuda.on(device):
            y, cache = ops.max_unpool2d(cuda.to_device(x), cuda.to_device(index.reshape(x.shape)), **options)
            dx = ops.max_unpool2d_backward(cuda.to_device(dy), cache)
            y, dx = cuda.to_host(y), cuda.to_host(dx)
        np.testing.assert_array_equal(y, expected)
        assert dx[0, 0, 0, 0] == dy[0, 0, 1, 0] and not dx[..., 1:].any()


def test_nan_and_infinity(machine, stored):
    x = np.array([np.nan, 1, 2, np.nan, -np.inf, -np.inf, 3, np.nan, 5], stored).reshape(1, 3, 3, 1)
    machine.agree(lambda x: ops.max_pool2d(x, 2, stride=1)[1].index, x)
    machine.agree(lambda x: ops.max_pool2d(x, 2, stride=1, padding=1)[0], x)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize(("shape", "options"), OPTIONS)
def test_avg_pool(machine, stored, shape, options, count_include_pad):
    def both(x, dy):
        y, cache = ops.avg_pool2d(x, **options, count_include_pad=count_include_pad)
        dy = dy[:, : y.shape[1], : y.shape[2]]
        return y, ops.avg_pool2d_backward(dy, cache)

    machine.agree(
        both, machine.numbers(*shape, dtype=stored), machine.numbers(shape[0], 12, 12, shape[3], dtype=stored)
    )
