"""The CUDA kernel of gumbel_softmax: the same noise as everywhere."""

import numpy as np
import pytest

from tinyseg import cuda, ops
from tinyseg.ops.dropout import next_offset
from tinyseg.ops.gumbel_softmax import gumbel_noise


@pytest.mark.parametrize("seed", [None, 2**40 + 7])
@pytest.mark.parametrize("shape", [(1, 1), (3,), (2, 5, 7, 3), (2, 3, 5, 21), (600, 2)])
def test_gumbel_softmax(machine, dtype, shape, seed):
    def both(x, dy):
        y, cache = ops.gumbel_softmax(x, temperature=0.7, seed=seed, offset=2**35 + 5)
        return y, ops.gumbel_softmax_backward(dy, cache)

    machine.agree(both, machine.numbers(*shape, dtype=dtype), machine.numbers(*shape, dtype=dtype))


def test_every_digit_of_the_noise(host, dtype):
    """The softmax of two scores tells the noise of the first, where that of the second is subtracted before: to
    float32's last digits even where u is nearly 0 or 1."""
    count = 40000
    noise = gumbel_noise((count, 2), seed=11)
    assert noise.min() < -2.2 and noise.max() > 10
    x = np.stack([np.zeros(count), noise[:, 0] - noise[:, 1]], axis=1).astype(dtype)
    with cuda.on(host()):
        y = cuda.to_host(ops.gumbel_softmax(cuda.to_device(x), seed=11)[0])
    np.testing.assert_allclose(y, 0.5, atol=3e-6 if dtype == np.float32 else 1e-14)


def test_an_offset_on_the_gpu(host, dtype):
    with cuda.on(host()):
        x, calls = cuda.to_device(np.zeros((4, 3), dtype)), cuda.to_device(np.array(6))
        for offset in (6, 7):
            on_gpu = ops.gumbel_softmax(x, seed=3, offset=next_offset(calls))[0]
            expected = ops.gumbel_softmax(x, seed=3, offset=offset)[0]
            np.testing.assert_array_equal(cuda.to_host(on_gpu), cuda.to_host(expected))


def test_an_array_that_is_not_contiguous(machine, dtype):
    x = machine.numbers(6, 5, 4, dtype=dtype)
    machine.agree(lambda x: ops.gumbel_softmax(x.transpose(2, 0, 1)[:, ::2], seed=3)[0], x)
