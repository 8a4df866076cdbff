"""What is said where something is missing that kernels need."""

import contextlib
import gc
import importlib.util
import sys
import types
import weakref

import numpy as np
import pytest

from tinyseg import cuda
from tinyseg.cuda import machine, nvrtc
from tinyseg.cuda.gpu import Gpu
from tinyseg.cuda.signature import signatures


@pytest.fixture
def with_driver(monkeypatch):
    """with_driver(cuda, devices, cupy): as if this computer had this driver, and this module for CuPy."""

    def pretend(cuda=13000, devices=1, cupy=None):
        monkeypatch.setattr(machine, "driver", lambda: machine.Driver(cuda, devices))
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: cupy if name == "cupy" else found(name))
        monkeypatch.setitem(sys.modules, "cupy", cupy)

    return pretend


def cupy_that(version=13000, capability="90", error=None):
    """A CuPy for this version of CUDA, with a GPU of this capability."""

    def device():
        if error is not None:
            raise error
        return types.SimpleNamespace(compute_capability=capability, attributes={"MaxSharedMemoryPerBlockOptin": 0})

    runtime = types.SimpleNamespace(runtimeGetVersion=lambda: version, getDevice=lambda: 0)
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

        freed = False

        def free_all_blocks(self):
            self.freed = True

    def empty(shape, dtype):
        if not (pool.freed and shape == (3,)):
            raise Full
        return "an array"

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
        Gpu().empty((4,), np.dtype(np.float32))
    gpu = Gpu()
    gpu._recorded = types.SimpleNamespace()
    with pytest.raises(cuda.OutOfMemory, match=r"smaller images, do without a CUDA graph, or end other programs"):
        gpu.empty((4,), np.dtype(np.float32))
    pool.freed = False  # what the pool keeps is given back, and the second attempt finds room
    assert Gpu().empty((3,), np.dtype(np.float32)) == "an array"
    assert issubclass(cuda.OutOfMemory, MemoryError)


class Cubins:
    """What a fake CuPy is given to run."""

    def __init__(self):
        self.loaded, self.calls, self.error = [], [], None

    def load(self, binary):
        if self.error is not None:
            raise self.error
        self.loaded.append(binary)

    def get_function(self, name):
        def call(grid, block, arguments, shared_mem):
            if self.error is not None:
                raise self.error
            self.calls.append((name, grid, block, arguments, shared_mem))

        return call


@pytest.fixture
def gpu(with_driver, monkeypatch):
    """A Gpu on a fake CuPy, whose arrays are NumPy's, and what that is given to run."""
    cubins, cupy = Cubins(), cupy_that()
    cupy.ndarray = types.SimpleNamespace
    cupy.cuda.function = types.SimpleNamespace(Module=lambda: cubins)
    with_driver(cupy=cupy)
    return Gpu(), cubins


def test_arguments_are_passed_by_value(gpu):
    gpu, cubins = gpu
    array = types.SimpleNamespace(data=types.SimpleNamespace(ptr=4096), device=types.SimpleNamespace(id=0))
    kernel = signatures("KERNEL(64, 1) void f(const float *x, float a, const float *y) {")["f"]
    assert gpu.owns(array)
    gpu.run(cubins, kernel, (3, 2, 1), 100, [array, np.float32(0.5), None])
    ((name, grid, block, arguments, shared),) = cubins.calls
    assert (name, grid, block, shared) == ("f", (3, 2, 1), (64, 1, 1), 100)
    assert arguments == (4096, 0.5, 0)
    assert [argument.dtype for argument in arguments] == [np.uint64, np.float32, np.uint64]


def test_a_kernel_that_cannot_be_started(gpu):
    gpu, cubins = gpu
    cubins.error = RuntimeError("too many resources")
    kernel = signatures("KERNEL(64, 1) void f(int n) {")["f"]
    with pytest.raises(cuda.CudaError, match=r"f could not be started with \(3, 1, 1\) blocks of 64 .*: too many"):
        gpu.run(cubins, kernel, (3, 1, 1), 0, [np.int32(1)])


class CupyArray:
    """Takes what a CuPy array takes: a NumPy array of its own type and shape."""

    def __init__(self, shape, dtype):
        self.values = np.zeros(shape, dtype)
        self.dtype = self.values.dtype

    def set(self, array):
        assert isinstance(array, np.ndarray)
        assert (array.dtype, array.shape) == (self.values.dtype, self.values.shape)
        self.values[...] = array


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_arrays_of_the_host_are_written_as_cupy_takes_them(gpu, shape):
    gpu, _ = gpu
    source = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape[::-1]).T + 1.5)
    target = CupyArray(shape, np.float32)
    gpu.write(target, source)
    np.testing.assert_array_equal(target.values, source)


def test_arrays_without_axes_are_uploaded_by_plain_copies(gpu):
    gpu, _ = gpu

    def asarray(array, order):
        assert array.ndim and order == "C", "CuPy would compile a kernel for it"
        return array.copy()

    gpu.cupy.asarray = asarray
    for array in (np.array(2.5), np.arange(6.0).reshape(2, 3)):
        uploaded = gpu.upload(array)
        assert uploaded.shape == array.shape
        np.testing.assert_array_equal(uploaded, array)


class Allocator:
    """A pool of memory, which never keeps any."""

    def __init__(self, malloc=None):
        self.malloc = malloc or object()


class Allocated:
    def __init__(self, size):
        self.size = size


class Stream:
    """A stream that can be recorded, once the memory of earlier kernels is given back."""

    def __init__(self, log, error):
        self.log, self.error = log, error

    __enter__ = __exit__ = lambda *_: None

    def begin_capture(self):
        assert self.log[-2:] == ["synchronised", "memory given back"]

    def end_capture(self):
        if self.error is not None:
            raise self.error
        return types.SimpleNamespace(launch=lambda: self.log.append("launched"))


@pytest.fixture
def recording(gpu):
    """A Gpu that can record, what happens on it, and its stream."""
    gpu, _ = gpu
    log: list[str] = []
    stream = Stream(log, None)
    gpu.cupy.cuda.Stream = lambda non_blocking: stream
    gpu.cupy.cuda.MemoryPool = Allocator
    gpu.cupy.cuda.Memory, gpu.cupy.cuda.MemoryPointer = Allocated, lambda memory, offset: memory
    gpu.cupy.cuda.using_allocator = lambda _: contextlib.nullcontext()
    gpu.cupy.cuda.runtime.deviceSynchronize = lambda: log.append("synchronised")
    pool = types.SimpleNamespace(free_all_blocks=lambda: log.append("memory given back"))
    gpu.cupy.get_default_memory_pool = lambda: pool
    return gpu, log, stream


def test_a_graph_gets_the_memory_of_the_kernels_that_ran_before(recording):
    gpu, log, _ = recording
    with gpu.record() as graph:
        assert gpu.is_recording
    assert not gpu.is_recording
    graph.launch()
    assert log[2:] == ["launched"]


def test_constants_of_a_graph_have_memory_of_their_own(recording):
    """A place in the graph's pool was another array's, which a launch writes before the constant is read."""
    gpu, _, _ = recording
    allocators: list = [None]

    @contextlib.contextmanager
    def using(allocator):
        allocators.append(allocator)
        yield
        allocators.pop()

    def empty(shape, dtype):
        made.append(allocators[-1])
        return CupyArray(shape, dtype)

    made = []
    gpu.cupy.cuda.using_allocator, gpu.cupy.empty = using, empty
    with gpu.record() as graph:
        gpu.empty((2,), np.dtype(np.float32))
        constant = gpu.upload(np.array([1.0, 2.0]))
        gpu.empty((2,), np.dtype(np.float32))
    assert made == [graph.pool.malloc, graph.pool_of_constants.malloc, graph.pool.malloc]
    np.testing.assert_array_equal(constant.values, [1, 2])


def test_memory_of_a_graph_is_kept_as_long_as_the_graph(recording):
    gpu, _, _ = recording
    with gpu.record() as graph:
        memory = weakref.ref(graph.pool.malloc(512))
    assert memory().size == 512
    del graph
    gc.collect()
    assert memory() is None


def test_uploads_wait_for_kernels_and_kernels_for_uploads(gpu, monkeypatch):
    gpu, _ = gpu
    log: list = []

    class Queue:
        """A stream that notes what it is told."""

        def __init__(self, name):
            self.name = name

        def __enter__(self):
            log.append(f"{self.name} is current")

        def __exit__(self, *_):
            log.append("kernels is current")

        def record(self):
            events.append(types.SimpleNamespace(number=len(events), done=False))
            return events[-1]

        def wait_event(self, event):
            log.append(f"{self.name} wait for event {event.number}")

    class Target(CupyArray):
        def set(self, array, stream):
            log.append(f"copied in {stream.name}")
            pinned.append(weakref.ref(array))
            super().set(array)

    def empty(shape, dtype):
        log.append("memory")
        return Target(shape, dtype)

    class Pinned(np.ndarray):
        """Can be referred to weakly."""

    events, pinned = [], []
    kernels = Queue("kernels")
    gpu.cupy.cuda.get_current_stream = lambda: kernels
    gpu.cupy.cuda.Stream = lambda non_blocking: Queue("copies")
    gpu.cupy.empty = empty
    monkeypatch.setitem(sys.modules, "cupyx", types.SimpleNamespace(empty_pinned=Pinned))
    uploaded = gpu.start_upload(np.arange(3.0))
    assert log == [
        "copies wait for event 0",  # of the kernels that may still read what was there
        "copies is current",
        "memory",
        "copied in copies",
        "kernels is current",
    ]
    np.testing.assert_array_equal(uploaded.values, [0, 1, 2])
    gpu.start_upload(np.arange(2.0))
    gpu.finish_uploads()
    assert log[-1] == "kernels wait for event 3"  # that of the second copy, which comes after the first
    assert pinned[0]() is not None
    events[1].done = True
    gpu.start_upload(np.arange(1.0))
    assert pinned[0]() is None and pinned[1]() is not None


def test_graphs_that_fail(recording):
    gpu, _, _ = recording
    with gpu.record() as graph:
        pass

    def launch():
        raise RuntimeError("no room for nodes")

    graph.graph.launch = launch
    with pytest.raises(cuda.CudaError, match="graph could not be started: no room for nodes; run without one"):
        graph.launch()


def test_what_cannot_be_recorded(recording):
    gpu, _, stream = recording
    stream.error = RuntimeError("capture is invalid")
    with pytest.raises(cuda.CudaError, match="does not become a CUDA graph: capture is invalid"), gpu.record():
        pass
    assert not gpu.is_recording
    with pytest.raises(ZeroDivisionError), gpu.record():  # and not what it leads to
        raise ZeroDivisionError


def test_binaries_that_the_driver_does_not_take(gpu, monkeypatch, tmp_path):
    gpu, cubins = gpu
    cubins.error = RuntimeError("invalid image")
    monkeypatch.setenv("TINYSEG_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compile", lambda *_: nvrtc.Compiled(b"", ""))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    with pytest.raises(cuda.CudaError, match=f"kernels of f.cu: invalid image; delete {tmp_path}"):
        gpu.load("one", "f.cu")


def test_binaries_are_kept_on_disk(gpu, monkeypatch, tmp_path):
    gpu, cubins = gpu
    compiled = []

    def compile(text, name, capability):
        compiled.append((name, capability))
        return nvrtc.Compiled(text.encode(), "")

    monkeypatch.setattr(nvrtc, "compile", compile)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setenv("TINYSEG_KERNEL_CACHE", str(tmp_path / "kernels"))
    for text in ("one", "two", "one"):
        gpu.load(text, "f.cu")
    assert cubins.loaded == [b"one", b"two", b"one"] and compiled == [("f.cu", 90)] * 2

    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("TINYSEG_KERNEL_CACHE", str(tmp_path / "no-folder"))
    gpu.load("one", "f.cu")
    assert len(compiled) == 3
