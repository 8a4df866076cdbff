"""Convolutions whose channels fill little of a block's tile, or not in whole runs, on the GPU."""

import pytest

from tinyseg import cuda, ops


def both_passes(algo="auto", **options):
    def run(x, w, b, dy):
        y, cache = ops.conv2d(x, w, b, algo=algo if cuda.on_gpu(x) else "auto", **options)
        return y, *ops.conv2d_backward(dy, cache)

    return run


def check(machine, x_shape, w_shape, dtype, algo="auto", **options):
    shapes = (x_shape, w_shape, w_shape[3:])
    x, w, b = (machine.numbers(*shape, dtype=dtype) for shape in shapes)
    dy = machine.numbers(*ops.conv2d(x, w, **options)[0].shape, dtype=dtype)
    machine.agree(both_passes(algo, **options), x, w, b, dy)


@pytest.mark.parametrize("groups", [1, 3])
def test_weights_are_turned_in_squares(machine, dtype, groups):
    """32 x 32 of them at a time, of each tap and group."""
    check(machine, (1, 2, 3, 34 * groups), (2, 1, 34, 65 * groups), dtype, "implicit_gemm", groups=groups)


@pytest.mark.parametrize("channels", [1, 3, 15])
def test_weight_gradients_of_few_rows(machine, dtype, channels):
    """9, 27 and 135 rows: some warps of a tile have none."""
    check(machine, (2, 5, 6, channels), (3, 3, channels, 5), dtype, "implicit_gemm", padding=1)
