"""Arrays of bfloat16 on the GPU: how numbers are rounded, and what may stand beside them."""

import sys

import numpy as np
import pytest

from tinyseg import cuda, ops

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by the package ml_dtypes, not installed")

SOURCE = """
KERNEL(64, 1) void round_numbers(const real *x, scalar *y, int64 n) {
    if (thread_number() < n)
        y[thread_number()] = x[thread_number()];
}

KERNEL(64, 1) void widen(const scalar *x, real *y, int64 n) {
    if (thread_number() < n)
        y[thread_number()] = x[thread_number()];
}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "trial.cu").write_text(SOURCE)
    return cuda.KernelFile(str(tmp_path / "trial.py"), scalars=["bfloat16"])


def test_numbers_are_rounded_to_the_nearest_and_to_even(machine, file):
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-40, -(2.0**-126)]
    bits = machine.rng.integers(0, 2**32, 2000, dtype=np.uint32)
    x = np.concatenate([np.array(special, np.float32), bits.view(np.float32)])
    with np.errstate(all="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    with cuda.on(machine.devices[0]):
        y = cuda.empty(x.shape, cuda.bfloat16())
        file.launch("round_numbers", cuda.to_device(x), y, x.size, threads=x.size)
        wide = cuda.empty(x.shape, np.dtype(np.float32))
        file.launch("widen", y, wide, x.size, threads=x.size)
        y, wide = cuda.to_host(y), cuda.to_host(wide)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(y[number].view(np.uint16), expected[number].view(np.uint16))
    assert np.isnan(y[~number].astype(np.float64)).all()
    np.testing.assert_array_equal(wide, y.astype(np.float32))


def test_parameters_are_float32_beside_bfloat16():
    assert cuda.real(cuda.bfloat16()) == np.float32
    assert cuda.real(np.dtype(np.float64)) == np.float64


def test_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ModuleNotFoundError, match="which is not installed; `pip install ml_dtypes`"):
        cuda.bfloat16()


def test_types_that_do_not_fit(host):
    with cuda.on(host()):
        rounded = cuda.to_device(np.ones((2, 3), ml_dtypes.bfloat16))
        exact = cuda.to_device(np.ones((2, 3), np.float32))
        with pytest.raises(TypeError, match="add: all arrays must have one type, but a is bfloat16, b is float32"):
            ops.add(rounded, exact)
        y, cache = ops.relu(rounded)
        assert y.dtype == ml_dtypes.bfloat16
        with pytest.raises(TypeError, match="dy must be bfloat16 like the forward pass's arrays, got float32"):
            ops.relu_backward(exact, cache)
        with pytest.raises(TypeError, match=r"response_forward: it cannot take bfloat16; use tinyseg\.ops\.cast"):
            ops.local_response_norm(rounded)
    with pytest.raises(TypeError, match="x must be float32 or float64, got bfloat16"):
        ops.relu(np.ones(3, ml_dtypes.bfloat16))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (4, 300)])
def test_cast_there_and_back(machine, shape):
    x, dy = machine.numbers(*shape, dtype=np.float32), machine.numbers(*shape).astype(ml_dtypes.bfloat16)
    for device in machine.devices:
        with cuda.on(device):
            y, cache = ops.cast(cuda.to_device(x), dtype="bfloat16")
            dx = ops.cast_backward(cuda.to_device(dy), cache)
            assert ops.cast(y, dtype=cuda.bfloat16())[0] is y
            y, dx = cuda.to_host(y), cuda.to_host(dx)
        np.testing.assert_array_equal(y.view(np.uint16), x.astype(ml_dtypes.bfloat16).view(np.uint16))
        np.testing.assert_array_equal(dx, dy.astype(np.float32))


def test_cast_from_float64(machine):
    x = machine.numbers(3, 7)
    with cuda.on(machine.devices[0]):
        y, cache = ops.cast(cuda.to_device(x), dtype="bfloat16")
        dx = ops.cast_backward(y, cache)
        narrow, _ = ops.cast(dx, dtype="float32")
        assert (dx.dtype, narrow.dtype) == (np.float64, np.float32)
        np.testing.assert_allclose(cuda.to_host(dx), x, rtol=2**-8)
