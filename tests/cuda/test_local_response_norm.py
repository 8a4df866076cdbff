"""The CUDA kernels of local_response_norm."""

import pytest

from tinyseg import ops


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 5, 7), 5), ((4, 1), 3), ((9, 33), 4), ((3, 2), 1)])
def test_local_response_norm(machine, dtype, shape, size):
    def both(x, dy):
        y, cache = ops.local_response_norm(x, size=size, alpha=0.3, beta=0.75, k=1.5)
        return y, ops.local_response_norm_backward(dy, cache)

    machine.agree(both, machine.numbers(*shape, dtype=dtype), machine.numbers(*shape, dtype=dtype))
