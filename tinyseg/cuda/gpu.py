"""An NVIDIA GPU, through CuPy."""

import contextlib
import hashlib
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tinyseg.backend import Array
from tinyseg.cuda import machine, nvrtc
from tinyseg.cuda.device import Memory
from tinyseg.cuda.errors import CudaError, OutOfMemory
from tinyseg.cuda.signature import Signature

Result = TypeVar("Result")

SHARED_WITHOUT_ASKING = 48 * 1024  # bytes; a kernel that wants more must be told so


class Gpu:
    """The GPU that is CuPy's current one now. Kernels run on CuPy's current stream."""

    def __init__(self):
        reason = machine.problem()
        if reason is not None:
            raise CudaError(f"kernels cannot run on a GPU here: {reason}")
        self.cupy = cupy = machine.cupy()
        self.number: int = cupy.cuda.runtime.getDevice()
        self.capability = int(cupy.cuda.Device().compute_capability)
        self.shared_limit: int = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
        self._functions: dict[tuple[int, str], Any] = {}
        self._recorded: Recorded | None = None  # what is being recorded now
        self._graphs: weakref.WeakSet[Recorded] = weakref.WeakSet()  # what was recorded, and is still held
        self._copies: Any = None  # the stream of uploads that run beside kernels
        self._in_flight: deque = deque()  # (event, array of the host) of each of them

    # ------------------------------------------------------------------------------------------------- memory

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        return self._allocate(lambda: self.cupy.empty(tuple(shape), dtype))

    def upload(self, array: np.ndarray) -> Array:
        if self._recorded is not None:
            return self._recorded.constant(array)
        # CuPy would fill an array without axes by a kernel of its own, which would have to be compiled.
        filled = self._allocate(lambda: self.cupy.asarray(np.atleast_1d(array), order="C"))
        return filled.reshape(array.shape)

    def start_upload(self, array: np.ndarray) -> Array:
        from cupyx import empty_pinned  # type: ignore[import-not-found]

        while self._in_flight and self._in_flight[0][0].done:
            self._in_flight.popleft()
        pinned = empty_pinned(array.shape, array.dtype)  # type: ignore[arg-type]  # the only memory that is copied while the host goes on
        pinned[...] = array
        if self._copies is None:
            self._copies = self.cupy.cuda.Stream(non_blocking=True)
        # The new array may lie where kernels that were started before still read an old one.
        self._copies.wait_event(self.cupy.cuda.get_current_stream().record())
        with self._copies:
            target = self.empty(array.shape, array.dtype)
            target.set(pinned, stream=self._copies)  # type: ignore[attr-defined]
            self._in_flight.append((self._copies.record(), pinned))
        return target

    def finish_uploads(self) -> None:
        if self._in_flight:
            self.cupy.cuda.get_current_stream().wait_event(self._in_flight[-1][0])

    def download(self, array: Array) -> np.ndarray:
        if self._recorded is not None:
            raise CudaError(
                "a number of the GPU is needed on the host while kernels are recorded into a CUDA graph; run this "
                "without a graph"
            )
        return self.cupy.asnumpy(array)

    def write(self, target: Array, source: Array | np.ndarray) -> None:
        if isinstance(source, np.ndarray):
            target.set(np.require(source, target.dtype, "C"))  # type: ignore[attr-defined]
        else:  # no kernel of CuPy's, which would have to be compiled
            target.data.copy_from_device_async(source.data, source.nbytes)  # type: ignore[attr-defined, arg-type]

    def owns(self, array: Array) -> bool:
        return isinstance(array, self.cupy.ndarray) and array.device.id == self.number  # type: ignore[attr-defined]

    def address(self, array: Array) -> int:
        return array.data.ptr  # type: ignore[attr-defined]

    def memory(self) -> Memory:
        pools = [self.cupy.get_default_memory_pool()]
        pools += [pool for graph in self._graphs for pool in (graph.pool, graph.pool_of_constants)]
        used, reserved = sum(pool.used_bytes() for pool in pools), sum(pool.total_bytes() for pool in pools)
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return Memory(used, reserved, free, total)

    @property
    def is_recording(self) -> bool:
        return self._recorded is not None

    @contextlib.contextmanager
    def record(self) -> Iterator["Recorded"]:
        recorded = Recorded(self)
        stream = self.cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be recorded
        self.cupy.cuda.runtime.deviceSynchronize()
        # What the same kernels worked in when they ran before makes room for what the graph works in.
        self.cupy.get_default_memory_pool().free_all_blocks()
        with stream, self.cupy.cuda.using_allocator(recorded.pool.malloc):
            stream.begin_capture()
            self._recorded = recorded
            try:
                yield recorded
            except BaseException:
                with contextlib.suppress(Exception):  # the recording is thrown away; what went wrong is raised
                    stream.end_capture()
                raise
            finally:
                self._recorded = None
            with _explained("what was recorded does not become a CUDA graph", "run it without one"):
                recorded.graph = stream.end_capture()
        recorded.fill_constants()
        self._graphs.add(recorded)

    def _allocate(self, make: Callable[[], Result]) -> Result:
        try:
            return make()
        except self.cupy.cuda.memory.OutOfMemoryError:  # perhaps of a graph's pool, while this one keeps much
            self.cupy.get_default_memory_pool().free_all_blocks()
        try:
            return make()
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            without = " do without a CUDA graph," if self.is_recording else ""
            raise OutOfMemory(
                f"the GPU's memory is full ({self.memory()}): take a smaller batch or smaller images,{without} "
                "or end other programs that use the GPU (`nvidia-smi` lists them)"
            ) from error

    # ------------------------------------------------------------------------------------------------ kernels

    def load(self, text: str, name: str) -> Any:
        module, binary = self.cupy.cuda.function.Module(), self._binary(text, name)
        with _explained(f"the driver does not take the compiled kernels of {name}", f"delete {_cache_folder()}"):
            module.load(binary)
        return module

    def run(
        self,
        module: Any,
        kernel: Signature,
        grid: tuple[int, int, int],
        shared: int,
        values: Sequence[Array | np.generic | None],
    ) -> None:
        arguments = tuple(self._argument(value) for value in values)
        try:
            function = self._function(module, kernel.name, shared)
            function(grid, (kernel.threads, 1, 1), arguments, shared_mem=shared)
        except Exception as error:  # CuPy raises one kind for each of CUDA's libraries
            raise CudaError(
                f"the kernel {kernel.name} could not be started with {grid} blocks of {kernel.threads} threads "
                f"and {shared} bytes of shared memory: {error}; `tinyseg doctor` tests the GPU"
            ) from error

    def _argument(self, value: Array | np.generic | None) -> np.generic:
        if value is None:
            return np.uint64(0)
        return value if isinstance(value, np.generic) else np.uint64(self.address(value))

    def _function(self, module: Any, name: str, shared: int) -> Any:
        key = (id(module), name)
        if key not in self._functions:
            self._functions[key] = [module.get_function(name), SHARED_WITHOUT_ASKING]
        function, allowed = self._functions[key]
        if shared > allowed:
            from cupy_backends.cuda.api import driver  # type: ignore[import-not-found]

            attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, attribute, shared)
            self._functions[key][1] = shared
        return function

    def _binary(self, text: str, name: str) -> bytes:
        """The compiled source, from the cache on disk if it is there."""
        identity = repr((text, self.capability, nvrtc.version()))
        folder = _cache_folder()
        path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.cubin"
        try:
            return path.read_bytes()
        except OSError:
            binary = nvrtc.compile(text, name, self.capability).binary
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(binary)
            Path(file.name).replace(path)  # at once: another process may read it just now
        except OSError:
            pass  # a folder that cannot be written to costs time, and nothing else
        return binary


class Recorded:
    """A CUDA graph, with the memory that its kernels work in: nobody else may be given any of it.

    A place in `pool` has one array after the other in it while the graph runs. The constants, which are written
    once and not at each launch, have a pool of their own.
    """

    def __init__(self, gpu: Gpu):
        self.gpu = gpu
        self.pool, self.pool_of_constants = _pool_that_keeps(gpu.cupy), gpu.cupy.cuda.MemoryPool()
        self.graph: Any = None
        self._constants: list[tuple[Array, np.ndarray]] = []

    def constant(self, array: np.ndarray) -> Array:
        """An array of the host that the kernels read. It is copied to the GPU once the recording is over."""
        with self.gpu.cupy.cuda.using_allocator(self.pool_of_constants.malloc):
            target = self.gpu.empty(array.shape, array.dtype)
        self._constants.append((target, array.copy()))
        return target

    def fill_constants(self) -> None:
        for target, array in self._constants:
            self.gpu.write(target, array)

    def launch(self) -> None:
        with _explained("the CUDA graph could not be started", "run without one"):
            self.graph.launch()


def _pool_that_keeps(cupy: Any) -> Any:
    """A pool whose memory goes with it. CuPy's own give back what is free for now when there is no room for more,
    also what kernels that are recorded already will write to."""
    kept = []

    def allocate(size: int) -> Any:
        kept.append(cupy.cuda.Memory(size))
        return cupy.cuda.MemoryPointer(kept[-1], 0)

    return cupy.cuda.MemoryPool(allocate)


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Makes one of this package's errors of those that CuPy raises, one kind for each of CUDA's libraries."""
    try:
        yield
    except Exception as error:
        raise CudaError(f"{what}: {error}; {remedy}") from error


def _cache_folder() -> Path:
    root = os.environ.get("TINYSEG_KERNEL_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "tinyseg" / "kernels"
