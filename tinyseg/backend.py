"""Which implementation of an operator runs, and how its kernels are loaded.

Every operator has a NumPy reference (the definition), Numba kernels for the CPU and, where written, a CUDA
kernel. The array decides: a CuPy array goes to CUDA, a NumPy array to Numba, or to the reference where Numba
is not installed. To force one of them, for reading, debugging or comparing:

    with tinyseg.use("numpy"):
        y, cache = ops.conv2d(x, w, b)

Importing this module imports NumPy and nothing else. Numba is imported when the first kernel is called.
"""

import contextlib
import functools
import importlib.util
import os
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np

Array = np.ndarray
"""An array of numbers: a `numpy.ndarray`, or a `cupy.ndarray` for operators that have a CUDA kernel."""

Name = Literal["numpy", "numba", "cupy"]
Implementation = Callable | types.ModuleType

_forced: ContextVar[Name | None] = ContextVar("tinyseg_backend", default=None)


class MissingKernel(NotImplementedError):
    """The operator has no implementation for the kind of array that it was given."""


@contextlib.contextmanager
def use(name: Name) -> Iterator[None]:
    """Run every operator inside the `with` block on one backend: "numpy", "numba" or "cupy"."""
    if name not in ("numpy", "numba", "cupy"):
        raise ValueError(f"use: unknown backend {name!r}; choose 'numpy', 'numba' or 'cupy'")
    if name == "numba" and not numba_is_installed():
        raise ModuleNotFoundError("use('numba'): Numba is not installed; `pip install numba` brings it")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def name_for(array: Array) -> Name:
    """The backend on which an operator runs when it is given this array."""
    forced = _forced.get()
    if forced is not None:
        return forced
    if not isinstance(array, np.ndarray) and hasattr(array, "__cuda_array_interface__"):
        return "cupy"
    return "numba" if numba_is_installed() else "numpy"


def choose(array: Array, *, numpy: Implementation, numba: Implementation, cuda: Any = None) -> Any:
    """The one of an operator's implementations that runs on this array: functions, or modules of functions."""
    name = name_for(array)
    if name == "numpy":
        return numpy
    if name == "numba":
        return numba
    if cuda is None:
        name = numpy.__name__ if isinstance(numpy, types.ModuleType) else numpy.__module__
        operator = name.removeprefix("tinyseg.ops.").partition(".")[0]
        raise MissingKernel(
            f"{operator} has no CUDA kernel yet; bring the array to the CPU with tinyseg.cuda.to_host(x), and run "
            "it there"
        )
    return cuda


@functools.cache
def numba_is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None


# ------------------------------------------------------------------------------------------------ Numba kernels

prange = range
"""The parallel loop of a kernel. It is Numba's `prange` once compiled, and a plain loop in plain Python.

Numba's loop variable is unsigned, and unsigned with signed makes a float: calculate with `np.int64(i)`.
"""

# What the compiler may do to float arithmetic: reorder sums and fuse a*b + c, so that loops vectorise. It may
# not assume that NaN and infinity never occur (Numba's fastmath=True would): a NaN must stay visible.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


def kernel(function: Callable | None = None, *, inline: bool = False, strict: bool = False) -> Any:
    """Mark a plain loop nest as a Numba kernel: compiled at its first call, and cached on disk.

    The loop over `prange` runs on all threads. A kernel may call other kernels of the same file (and only of
    the same file: Numba's cache is renewed when the kernel's own file changes, not when another one does).
    With `inline` its text is put into the kernels that call it, for a small piece of an innermost loop.
    With `strict` float arithmetic is done exactly as written, for results that hang on the last bit of a float.
    """
    if function is None:
        return functools.partial(kernel, inline=inline, strict=strict)
    return Kernel(function, inline, strict)


class Kernel:
    """A function that becomes a compiled Numba kernel when it is first called.

    Numba's own decorator would do its work at import, and importing tinyseg would import Numba. It is also
    handed the file's own names: `prange`, and the other kernels, stand for their compiled selves.
    """

    def __init__(self, function: Callable, inline: bool, strict: bool):
        self.function = function
        self.inline = inline
        self.strict = strict
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    @functools.cached_property
    def compiled(self) -> Callable:
        numba = _load_numba()
        names = dict(self.function.__globals__)
        for name in self.function.__code__.co_names:
            if isinstance(names.get(name), Kernel):
                names[name] = names[name].compiled
        names["prange"] = numba.prange
        function = types.FunctionType(self.function.__code__, names, self.function.__name__)
        return numba.njit(
            function,
            parallel="prange" in self.function.__code__.co_names,
            inline="always" if self.inline else "never",
            cache=True,
            fastmath=False if self.strict else FASTMATH,
            error_model="numpy",
        )


@functools.cache
def _load_numba():
    """Numba, set up once: OpenMP threads where they exist, and a BLAS that leaves the threads to the kernels."""
    # OpenMP starts a parallel loop in 2 microseconds, Numba's own thread pool in 130.
    os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp tbb workqueue")
    import numba
    import scipy.linalg.cython_blas  # noqa: F401  np.dot inside a kernel calls SciPy's BLAS: load it, then limit it
    from threadpoolctl import ThreadpoolController

    # Kernels call np.dot from every thread at once. SciPy carries a BLAS of its own, apart from NumPy's.
    scipy_blas = ThreadpoolController().select(user_api="blas")
    for library in scipy_blas.lib_controllers:
        if "scipy" in library.filepath:
            library.set_num_threads(1)
    return numba
