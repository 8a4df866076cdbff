"""The CUDA kernels of group_norm."""

import pytest

from tinyseg import cuda, ops


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 3, 5, 6), 3), ((1, 7, 9, 1), 1), ((3, 5, 7, 8), 1), ((2, 3, 4, 40), 40), ((2, 60, 70), 2)],
)
@pytest.mark.parametrize("need", [(True, True, True), (False, True, True)])
def test_group_norm(machine, stored, shape, groups, need):
    def both(x, gamma, beta, dy):
        y, cache = ops.group_norm(x, gamma, beta, groups=groups)
        return y, cache.mean, cache.var, *ops.group_norm_backward(dy, cache, need=need)

    x, dy = (3 + 2 * machine.numbers(*shape)).astype(stored), machine.numbers(*shape, dtype=stored)
    gamma, beta = (machine.numbers(shape[-1], dtype=cuda.real(stored)) for _ in range(2))
    machine.agree(both, x, gamma, beta, dy)
