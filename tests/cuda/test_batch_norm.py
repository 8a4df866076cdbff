"""The CUDA kernels of batch_norm."""

import pytest

from tinyseg import cuda, ops

# Channels in packs of four and not; several tiles of channels; several chunks of pixels; a single pixel.
SHAPES = [(2, 3, 5, 1), (1, 7, 9, 3), (2, 5, 7, 8), (700, 4), (130, 260), (90, 67), (1, 5)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_of_the_batch(machine, stored, shape, relu):
    def both(x, gamma, beta, dy):
        y, cache = ops.batch_norm(x, gamma, beta, relu=relu)
        return y, cache.mean, cache.var, *ops.batch_norm_backward(dy, cache)

    x = (3 + 2 * machine.numbers(*shape)).astype(stored)
    gamma, beta = (machine.numbers(shape[-1], dtype=cuda.real(stored)) for _ in range(2))
    # One pixel has the deviation 0, and dx is the difference of numbers that were divided by sqrt(eps).
    floor = 300 if shape == (1, 5) else 0
    machine.agree(both, x, gamma, beta, machine.numbers(*shape, dtype=stored), floor=floor)


@pytest.mark.parametrize("need", [(True, True, True), (True, False, False), (False, True, False)])
@pytest.mark.parametrize("relu", [False, True])
def test_constant_statistics(machine, stored, relu, need):
    def both(x, gamma, beta, mean, var, dy):
        y, cache = ops.batch_norm(x, gamma, beta, mean=mean, var=var, relu=relu)
        return y, *ops.batch_norm_backward(dy, cache, need=need)

    per_channel = [machine.numbers(6, dtype=cuda.real(stored)) for _ in range(4)]
    per_channel[3] **= 2
    x, dy = machine.numbers(2, 5, 3, 6, dtype=stored), machine.numbers(2, 5, 3, 6, dtype=stored)
    machine.agree(both, x, *per_channel, dy)


def test_a_mean_far_from_zero(machine, dtype):
    """The variance is no difference of large numbers."""
    x = 1000 + machine.numbers(50, 8, dtype=dtype)
    machine.agree(lambda x: ops.batch_norm(x, x[0], x[1])[1].var, x)
