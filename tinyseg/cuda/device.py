"""What runs kernels: a GPU, or in the tests a host that plays one."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinyseg.backend import Array
from tinyseg.cuda.signature import Signature


class Memory(NamedTuple):
    """Bytes of a GPU's memory."""

    used: int  # by arrays
    reserved: int  # by arrays, and kept for the next ones
    free: int  # for everybody on this GPU
    total: int

    def __str__(self) -> str:
        used, reserved, free, total = (f"{number / 2**30:.2f}" for number in self)
        return f"{used} GiB in arrays, {reserved} GiB reserved; {free} of {total} GiB free"


class Graph(Protocol):
    """Kernels that were recorded, to be started together again and again."""

    def launch(self) -> None:
        """Start them all, on the arrays that they were recorded with."""
        ...


class Device(Protocol):
    capability: int  # 90 is compute capability 9.0
    shared_limit: int  # bytes of shared memory that one block may have

    @property
    def is_recording(self) -> bool:
        """Whether kernels are recorded now instead of run."""
        ...

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        """A new array with anything in it."""
        ...

    def upload(self, array: np.ndarray) -> Array: ...

    def start_upload(self, array: np.ndarray) -> Array:
        """The same, but kernels may run meanwhile. It is there after the next `finish_uploads`."""
        ...

    def finish_uploads(self) -> None:
        """Kernels that are started from now on wait for what `start_upload` was given."""
        ...

    def download(self, array: Array) -> np.ndarray: ...

    def write(self, target: Array, source: Array | np.ndarray) -> None:
        """Overwrite an array of the device with another one, or with one of the host."""
        ...

    def owns(self, array: Array) -> bool: ...

    def address(self, array: Array) -> int: ...

    def load(self, text: str, name: str) -> Any:
        """Compile a source text. The result is handed to `run`, and kept for the next time."""
        ...

    def run(
        self,
        module: Any,
        kernel: Signature,
        grid: tuple[int, int, int],
        shared: int,
        values: Sequence[Array | np.generic | None],
    ) -> None:
        """Start a kernel with arrays (None: a null pointer) and scalars of exactly the types it takes."""
        ...

    def record(self) -> contextlib.AbstractContextManager[Graph]:
        """Inside the block kernels are not run but recorded. Afterwards the graph is ready to be launched."""
        ...

    def memory(self) -> Memory: ...


_chosen: ContextVar[Device | None] = ContextVar("tinyseg_cuda_device", default=None)


@contextlib.contextmanager
def on(device: Device) -> Iterator[None]:
    """Run kernels inside the `with` block on this device."""
    token = _chosen.set(device)
    try:
        yield
    finally:
        _chosen.reset(token)


def current() -> Device:
    """The device that kernels run on: CuPy's current GPU, unless another was chosen by `on`."""
    return _chosen.get() or _gpu()


@cache
def _gpu() -> Device:
    from tinyseg.cuda.gpu import Gpu

    return Gpu()
