"""Arrays in other orders and types: what kernels are given instead."""

import numpy as np
import pytest

from tinyseg import cuda
from tinyseg.cuda.arrays import ELEMENTS

VIEWS = {
    "as it is": lambda x: x,
    "turned axes": lambda x: x.transpose(2, 0, 3, 1),
    "part of the channels": lambda x: x[..., 1:3],
    "part of the rows": lambda x: x[:, 1:],
    "backwards": lambda x: x[:, ::-1, :, ::-1],
    "every other column": lambda x: x[:, :, ::2],
    "between boundaries": lambda x: x[1:, 1],
    "one number": lambda x: x[1, 2, 3, 4],
    "nothing": lambda x: x[:, 2:2],
}


def typed(name: str) -> np.dtype:
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by the package ml_dtypes, which is missing")
        return cuda.bfloat16()
    return np.dtype(name)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_in_order(machine, name, view):
    x = machine.rng.integers(0, 120, (2, 3, 5, 6)).astype(typed(name))
    for device in machine.devices:
        with cuda.on(device):
            seen = view(cuda.to_device(x))
            y = cuda.contiguous(seen)
            assert y.flags.c_contiguous
            assert cuda.address(y) % 16 == 0
            assert (y is seen) == (seen.flags.c_contiguous and cuda.address(seen) % 16 == 0)
            np.testing.assert_array_equal(cuda.to_host(y), view(x))
            np.testing.assert_array_equal(cuda.to_host(seen), view(x))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 1030])
@pytest.mark.parametrize("name", ELEMENTS)
def test_every_conversion(machine, name, size):
    x = machine.rng.uniform(0, 120, size).astype(typed(name))
    for to in ELEMENTS:
        if to in ("bool", name):
            continue
        for device in machine.devices:
            with cuda.on(device):
                y = cuda.to_host(cuda.contiguous(cuda.to_device(x), typed(to)))
            assert y.dtype == typed(to)
            assert y.tobytes() == x.astype(typed(to)).tobytes()


def test_what_floats_cannot_hold(machine):
    x = np.array([np.nan, np.inf, -np.inf, 1e300, -1e-300, -0.0])
    with cuda.on(machine.devices[0]):
        narrow = cuda.to_host(cuda.astype(cuda.to_device(x), np.float32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow, x.astype(np.float32))
    assert np.signbit(narrow[-1])


def test_order_and_type_at_once(machine):
    x = machine.rng.standard_normal((4, 5, 6))
    with cuda.on(machine.devices[0]):
        y = cuda.to_host(cuda.contiguous(cuda.to_device(x).transpose(2, 1, 0), np.float32))
    np.testing.assert_array_equal(y, x.transpose(2, 1, 0).astype(np.float32))


def test_as_type_stays_where_the_array_is(machine):
    x = machine.rng.standard_normal((4, 5))
    with cuda.on(machine.devices[0]):
        there = cuda.to_device(x)
        assert cuda.astype(there, np.float64) is there
        assert cuda.on_gpu(cuda.astype(there, np.float32))
    assert cuda.astype(x, np.float64) is x
    assert cuda.astype(x, np.float32).dtype == np.float32


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.transpose(1, 0)], ids=["in order", "turned"])
def test_a_copy_is_its_own(machine, view):
    x = machine.rng.standard_normal((4, 5))
    with cuda.on(machine.devices[0]):
        there = cuda.to_device(x)
        copy = cuda.copied(view(there))
        cuda.write(there, np.zeros_like(x))
        np.testing.assert_array_equal(cuda.to_host(copy), view(x))
    copy = cuda.copied(view(x))
    assert copy.flags.c_contiguous
    assert not np.shares_memory(copy, x)
    np.testing.assert_array_equal(copy, view(x))


def test_types_that_kernels_do_not_know(machine):
    with cuda.on(machine.devices[0]):
        short = cuda.to_device(np.zeros((2, 3), np.int16))
        assert cuda.contiguous(short) is short
        with pytest.raises(TypeError, match="int16 on the GPU can be neither converted nor put into C order"):
            cuda.contiguous(short.transpose(1, 0))
        with pytest.raises(TypeError, match="int16 on the GPU can be neither converted nor put into C order"):
            cuda.astype(short, np.int64)
        with pytest.raises(TypeError, match="cannot be converted to float16, only to"):
            cuda.astype(cuda.to_device(np.zeros(3)), np.float16)
        with pytest.raises(TypeError, match="must all be on the GPU, got ndarray; use to_device"):
            cuda.contiguous(np.zeros(3))
