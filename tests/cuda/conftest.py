"""Runs CUDA kernels: on a GPU played by the host, and on a GPU where there is one (`-m gpu`)."""

import warnings
from collections.abc import Callable
from pathlib import Path

import ahead
import host_gpu
import numpy as np
import pytest

import tinyseg
from tinyseg import cuda

LAST = "test_every_kernel_has_run_on_the_host"
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
ROUNDED = 2e-2  # where arrays are bfloat16, which has three digits


class Machine:
    """Devices on which a result must come out the same to the last bit."""

    def __init__(self, devices: list, rng: np.random.Generator):
        self.devices = devices
        self.rng = rng

    def numbers(self, *shape: int, dtype=np.float64) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(dtype)

    def agree(
        self, function: Callable, *arrays: np.ndarray, tolerance: dict | None = None, floor: float = 0
    ) -> list[np.ndarray]:
        """function(*arrays), an array or several, is on the device what the NumPy reference makes of it.

        The reference calculates in float64. Numbers may differ by the tolerance of their type, times themselves
        and times the largest of their array (or `floor`, if that is larger); integers and NaN not at all. With
        arrays of bfloat16, results may be bfloat16 or float32. Returns the device's results.
        """
        tolerance = TOLERANCE | (tolerance or {})
        with tinyseg.use("numpy"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of infinities and NaN
            precise = (array.astype(np.float64) if _is_float(array) else array for array in arrays)
            expected = _tuple(function(*precise))
        first = None
        for device in self.devices:
            with cuda.on(device):
                results = _tuple(function(*(cuda.to_device(array) for array in arrays)))
                results = [None if result is None else cuda.to_host(result) for result in results]
            assert len(results) == len(expected)
            for result, right in zip(results, expected, strict=True):
                assert (result is None) == (right is None)
                if result is not None:
                    _compare(result, np.asarray(right), arrays, tolerance, floor)
            first = first or results
            for result, other in zip(results, first, strict=True):
                assert result is None or result.tobytes() == other.tobytes(), "the order of threads changes bits"
        assert first is not None
        return first


def _tuple(results) -> tuple:
    return results if isinstance(results, tuple | list) else (results,)


def _compare(result: np.ndarray, right: np.ndarray, arrays: tuple, tolerance: dict, floor: float) -> None:
    assert result.shape == right.shape
    if right.dtype.kind != "f":
        assert result.dtype == right.dtype
        np.testing.assert_array_equal(result, right)
        return
    given = next(array.dtype for array in arrays if _is_float(array))
    assert result.dtype in (given, cuda.real(given))
    finite = np.abs(right[np.isfinite(right)])
    allowed = tolerance.get(given, ROUNDED)
    largest = max(floor, finite.max() if finite.size else 0)
    np.testing.assert_allclose(result.astype(np.float64), right, rtol=allowed, atol=allowed * largest)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request, rng) -> Machine:
    """The host with three orders of threads; or the GPU, twice."""
    if request.param == "host":
        return Machine([request.getfixturevalue("host")(order) for order in host_gpu.ORDERS], rng)
    reason = cuda_problem()
    if reason is not None:
        if request.config.getoption("--require-gpu"):
            pytest.fail(reason)
        pytest.skip(f"no GPU: {reason}")
    from tinyseg.cuda.gpu import Gpu

    gpu = Gpu()
    return Machine([gpu, gpu], rng)


@pytest.fixture(scope="session")
def host(request, tmp_path_factory) -> Callable[..., host_gpu.HostGpu]:
    """host(order): a GPU played by this computer."""
    if host_gpu.compiler() is None:
        pytest.skip("kernels run on the host through g++, which is not installed")
    folder = host_folder(request.config) or tmp_path_factory.mktemp("cuda-on-the-host")
    return lambda order="forward": host_gpu.HostGpu(folder, order)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def stored(request) -> np.dtype:
    """The type of arrays, for kernels that can store in bfloat16. Parameters are cuda.real(stored)."""
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


@pytest.fixture
def bfloat16() -> np.dtype:
    pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by the package ml_dtypes, which is not installed")
    return cuda.bfloat16()


def cuda_problem() -> str | None:
    from tinyseg.cuda import machine

    return machine.problem()


def host_folder(config: pytest.Config) -> Path | None:
    """Where libraries of kernels stay from run to run. There is none with -p no:cacheprovider."""
    cache = getattr(config, "cache", None)
    return cache.mkdir("cuda-on-the-host") if cache else None


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name == LAST)  # it looks at what the others did


def pytest_collection_finish(session):
    if any(item.name == LAST for item in session.items) and not session.config.option.collectonly:
        from test_compile import compile_ahead

        compile_ahead(host_folder(session.config))


def pytest_sessionfinish():
    ahead.end()
