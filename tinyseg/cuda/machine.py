"""What this computer has for running kernels, and what is missing."""

import ctypes
import importlib
import importlib.util
import sys
import warnings
from typing import NamedTuple

OLDEST_CAPABILITY = 75


class Driver(NamedTuple):
    """NVIDIA's driver."""

    cuda: int  # the newest CUDA version that it runs: 12040 is 12.4
    devices: int

    @property
    def extra(self) -> str:
        """The optional dependencies of tinyseg that fit to this driver."""
        return "cuda13" if self.cuda >= 13000 else "cuda12"


def driver() -> Driver | None:
    """The driver, or None where there is none."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return Driver(version.value, 0)
    return Driver(version.value, count.value)


def problem() -> str | None:
    """Why kernels cannot run here, and what to do, in one sentence. None if they can."""
    found = driver()
    if found is None:
        return "no NVIDIA driver was found; install one from nvidia.com/drivers, or run on the CPU"
    if found.cuda < 12000:
        return f"the driver runs CUDA up to {_version(found.cuda)}; install one for CUDA 12 or newer"
    if found.devices == 0:
        return "the NVIDIA driver finds no GPU; look at `nvidia-smi`, and whether CUDA_VISIBLE_DEVICES hides it"
    if importlib.util.find_spec("cupy") is None:
        return (
            f"the driver runs CUDA {_version(found.cuda)}, but CuPy is not installed; "
            f"`pip install 'tinyseg[{found.extra}]'` brings it"
        )
    try:
        runtime = cupy().cuda.runtime.runtimeGetVersion()
        capability = int(cupy().cuda.Device().compute_capability)
    except Exception as error:  # CuPy raises its own kinds when device and driver do not fit
        if getattr(error, "status", None) == 35:  # cudaErrorInsufficientDriver
            return (
                f"the driver runs CUDA up to {_version(found.cuda)}, too old for the installed CuPy; install a "
                f"newer driver, or `pip uninstall` this CuPy and `pip install 'tinyseg[{found.extra}]'`"
            )
        return f"CuPy cannot use the GPU: {error}; look at `nvidia-smi`"
    if runtime // 1000 > found.cuda // 1000:
        return (
            f"CuPy is made for CUDA {_version(runtime)}, the driver runs up to {_version(found.cuda)}; install a "
            f"newer driver, or `pip uninstall` this CuPy and `pip install 'tinyseg[{found.extra}]'`"
        )
    if capability < OLDEST_CAPABILITY:
        return (
            f"the GPU has compute capability {capability / 10}; kernels need {OLDEST_CAPABILITY / 10} or more "
            "(Turing, 2018, and later)"
        )
    return None


def name() -> str:
    """The GPU and the versions of its software. There must be no `problem`."""
    found, runtime = driver(), cupy().cuda.runtime
    gpu = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return f"{gpu}, CUDA {_version(found.cuda) if found else 'unknown'}, CuPy {cupy().__version__}"


def cupy():
    """The module CuPy. It warns of missing parts of CUDA that are not used here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("cupy")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
