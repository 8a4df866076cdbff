"""What is said where something is missing that kernels need."""

import importlib.util
import types

import numpy as np
import pytest

from tinyseg import cuda
from tinyseg.cuda import machine
from tinyseg.cuda.gpu import Gpu


@pytest.fixture
def with_driver(monkeypatch):
    """with_driver(cuda, devices, cupy): as if this computer had this driver, and this module for CuPy."""

    def pretend(cuda=13000, devices=1, cupy=None):
        monkeypatch.setattr(machine, "driver", lambda: machine.Driver(cuda, devices))
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: cupy if name == "cupy" else found(name))
        monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)

    return pretend


def cupy_that(version=13000, capability="90", error=None):
    """A CuPy for this version of CUDA, with a GPU of this capability."""

    def device():
        if error is not None:
            raise error
        return types.SimpleNamespace(compute_capability=capability, attributes={"MaxSharedMemoryPerBlockOptin": 0})

    runtime = types.SimpleNamespace(runtimeGetVersion=lambda: version)
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime, Device=device))


def test_no_driver(monkeypatch):
    monkeypatch.setattr(machine, "driver", lambda: None)
    assert (
        machine.problem() == "no NVIDIA driver was found; install one from nvidia.com/drivers, or run on the CPU"
    )
    with pytest.raises(cuda.CudaError, match="kernels cannot run on a GPU here: no NVIDIA driver was found"):
        Gpu()


def test_a_driver_that_is_too_old(with_driver):
    with_driver(11040)
    assert machine.problem() == "the driver runs CUDA up to 11.4; install one for CUDA 12 or newer"


def test_no_gpu(with_driver):
    with_driver(devices=0)
    assert "finds no GPU; look at `nvidia-smi`" in machine.problem()


def test_no_cupy(with_driver):
    with_driver(13000)
    assert machine.problem().endswith("CuPy is not installed; `pip install 'tinyseg[cuda13]'` brings it")
    with_driver(12080)
    assert machine.problem().startswith("the driver runs CUDA 12.8, but")
    assert "'tinyseg[cuda12]'" in machine.problem()


def test_a_cupy_for_a_newer_driver(with_driver):
    with_driver(12040, cupy=cupy_that(13000))
    assert machine.problem().startswith("CuPy is made for CUDA 13.0, the driver runs up to 12.4; install a newer")
    error = RuntimeError("insufficient")
    error.status = 35
    with_driver(12040, cupy=cupy_that(error=error))
    assert "12.4, too old for the installed CuPy" in machine.problem()
    assert machine.problem().endswith("`pip install 'tinyseg[cuda12]'`")


def test_a_gpu_that_is_too_old_or_broken(with_driver):
    with_driver(cupy=cupy_that(capability="61"))
    assert "has compute capability 6.1; kernels need 7.5 or more" in machine.problem()
    with_driver(cupy=cupy_that(error=RuntimeError("it is on fire")))
    assert machine.problem() == "CuPy cannot use the GPU: it is on fire; look at `nvidia-smi`"


def test_no_problem(with_driver):
    with_driver(cupy=cupy_that())
    assert machine.problem() is None


def test_memory_that_is_full(with_driver):
    class Full(Exception):
        pass

    class Pool:
        def used_bytes(self):
            return 3 * 2**30

        total_bytes = used_bytes

        def free_all_blocks(self):
            self.freed = True

    def empty(shape, dtype):
        raise Full

    pool = Pool()
    cupy = cupy_that()
    cupy.cuda.memory = types.SimpleNamespace(OutOfMemoryError=Full)
    cupy.cuda.runtime.memGetInfo = lambda: (2**28, 2**32)
    cupy.get_default_memory_pool = lambda: pool
    cupy.empty = empty
    with_driver(cupy=cupy)
    with pytest.raises(
        cuda.OutOfMemory, match=r"memory is full .3.00 GiB in arrays.*0.25 of 4.00.*: take a smaller batch"
    ):
        Gpu().empty((3,), np.dtype(np.float32))
    assert pool.freed
    assert issubclass(cuda.OutOfMemory, MemoryError)
