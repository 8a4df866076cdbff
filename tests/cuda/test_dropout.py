"""The CUDA kernels of dropout: the same mask as everywhere."""

import pytest

from tinyseg import ops


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("shape", [(1, 3), (2, 5, 7, 3), (3, 5, 9, 17)])
def test_dropout(machine, stored, shape, channels):
    def both(x, dy):
        y, cache = ops.dropout(x, rate=0.3, seed=2**40 + 7, offset=2**35 + 5, channels=channels)
        return y, ops.dropout_backward(dy, cache)

    machine.agree(both, machine.numbers(*shape, dtype=stored), machine.numbers(*shape, dtype=stored))


def test_rate_zero_keeps_everything(machine, stored):
    machine.agree(lambda x: ops.dropout(x, rate=0, seed=3)[0], machine.numbers(4, 9, dtype=stored))
