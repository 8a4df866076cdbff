"""A GPU played by the host: kernels are compiled by g++ against `host.hpp`, and run on memory with guard bands.

It has the interface of `tinyseg.cuda.gpu.Gpu`. So operators, their launchers and their checks run as they do on a
GPU; only arrays, compiler and scheduler are others.
"""

import contextlib
import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import ahead
import numpy as np

from tinyseg import cuda
from tinyseg.cuda import CudaError
from tinyseg.cuda.signature import Signature, signatures

GUARD = 4096  # bytes before and after each array
UNIT = 512  # bytes: the pieces in which CuPy hands out memory
POISON = 0xFF  # in every byte of new memory: NaN, or the largest integer
ORDERS = ("forward", "backward", "shuffled")
OPTIONS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-w")

RECORDING: list["Recorded"] = []
"""The graph that is being recorded, if one is."""

LAUNCHED: set[tuple[str, tuple, str]] = set()
"""The file, the configuration (names and values, as text) and the name of each kernel that has run."""


class Place:
    """Some bytes, with guard bands that nobody may write to."""

    def __init__(self, size: int):
        whole = np.full(size + 2 * GUARD + 32, POISON, np.uint8)
        # At 16 bytes from a 32-byte boundary: a kernel may count on 16, and not on more.
        first = GUARD + (16 - (whole.ctypes.data + GUARD)) % 32
        self.before, self.bytes, self.after = whole[:first], whole[first : first + size], whole[first + size :]

    def is_intact(self) -> bool:
        return bool((self.before == POISON).all() and (self.after == POISON).all())


class Block:
    """Memory that an array was given, for itself and its views. When they are gone, another array may have it."""

    def __init__(self, place: Place):
        self.place = place

    def is_intact(self) -> bool:
        return self.place.is_intact()


class HostArray:
    """An array "on the GPU". It has what operators may use of a CuPy array: nothing that takes a kernel of CuPy's,
    for which CuPy must find CUDA's headers. And it is no NumPy array: functions of NumPy fail on it."""

    __array_ufunc__ = None
    __array_priority__ = 1000.0

    def __init__(self, block: Block, values: np.ndarray):
        self.block = block
        self.values = values

    def __array__(self, *_, **__):
        raise TypeError("a NumPy function was given an array on the GPU")

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    nbytes = property(lambda self: self.values.nbytes)
    itemsize = property(lambda self: self.values.itemsize)
    strides = property(lambda self: self.values.strides)
    flags = property(lambda self: self.values.flags)
    __cuda_array_interface__ = property(lambda self: {"shape": self.shape, "version": 3})

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        values = self.values[key]
        if not isinstance(values, np.ndarray):  # one number, which for CuPy is an array, too
            values = self.values[(*key, ...) if isinstance(key, tuple) else (key, ...)]
        return HostArray(self.block, values)

    def reshape(self, *shape):
        if not self.flags.c_contiguous:
            raise TypeError("CuPy would do this by a kernel of its own; pass the array through cuda.contiguous")
        return HostArray(self.block, self.values.reshape(*shape))

    def transpose(self, *axes):
        return HostArray(self.block, self.values.transpose(*axes))


def copy(target: HostArray, source: HostArray) -> None:
    to, values = target.values, source.values  # not the arrays: what is recorded does not keep them
    started(lambda: np.copyto(to, values, casting="unsafe"))


def allocate(shape, dtype) -> HostArray:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return in_block(RECORDING[0].block(size) if RECORDING else Block(Place(size)), shape, dtype)


def in_block(block: Block, shape, dtype) -> HostArray:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return HostArray(block, block.place.bytes[:size].view(dtype).reshape(shape))


def upload(array: np.ndarray) -> HostArray:
    place = Place(array.nbytes)  # for a graph, too: it holds a constant, which no other array may overwrite
    if RECORDING:
        RECORDING[0].places.append(place)
    result = in_block(Block(place), array.shape, array.dtype)
    result.values[...] = array
    return result


class Recorded:
    """A graph: what was started while it was recorded, to be done at each launch.

    It keeps the memory for that, which kernels find by addresses in tables even where nobody holds the arrays any
    longer. As on a GPU, memory of an array that is gone is given to the next one; there is poison in it then.
    """

    def __init__(self):
        self.work: list[Callable[[], None]] = []
        self.places: list[Place] = []
        self.free: list[Place] = []

    def block(self, size: int) -> Block:
        fitting = [place for place in self.free if place.bytes.size >= size]
        if fitting:
            place = min(fitting, key=lambda place: place.bytes.size)
            self.free.remove(place)
        else:
            place = Place(-(-size // UNIT) * UNIT)
            self.places.append(place)
        self.work.append(lambda: place.bytes.fill(POISON))
        block = Block(place)
        weakref.finalize(block, self.free.append, place).atexit = False
        return block

    def launch(self) -> None:
        for work in self.work:
            work()


def started(work: Callable[[], None]) -> None:
    """Do it now, or record it."""
    if RECORDING:
        RECORDING[0].work.append(work)
    else:
        work()


class HostGpu:
    """order: in which order blocks and threads take turns, one of ORDERS."""

    capability = 90
    shared_limit = 227 * 1024
    libraries: ClassVar[dict[str, ctypes.CDLL]] = {}

    def __init__(self, folder: Path, order: str = "forward"):
        self.folder = folder
        self.order = order
        self.uploads: list[Callable[[], None]] = []  # begun and not finished

    def empty(self, shape, dtype) -> HostArray:
        return allocate(tuple(shape), dtype)

    def upload(self, array) -> HostArray:
        return upload(array)

    def start_upload(self, array) -> HostArray:
        result = allocate(array.shape, array.dtype)  # poison, until the upload is finished
        self.uploads.append(functools.partial(np.copyto, result.values, array.copy()))
        return result

    def finish_uploads(self) -> None:
        for upload in self.uploads:
            upload()
        self.uploads.clear()

    def download(self, array) -> np.ndarray:
        if RECORDING:
            raise CudaError("a number of the GPU is needed on the host while kernels are recorded")
        return array.values.copy()

    def write(self, target, source) -> None:
        if isinstance(source, np.ndarray):
            np.copyto(target.values, source)
        else:
            copy(target, source)

    @property
    def is_recording(self) -> bool:
        return bool(RECORDING)

    @contextlib.contextmanager
    def record(self):
        RECORDING.append(Recorded())
        try:
            yield RECORDING[0]
        finally:
            RECORDING.clear()

    def owns(self, array) -> bool:
        return isinstance(array, HostArray)

    def address(self, array) -> int:
        return array.values.ctypes.data

    def memory(self) -> cuda.Memory:
        return cuda.Memory(0, 0, 0, 0)

    def load(self, text: str, name: str):
        configuration = tuple(re.findall(r"^#define (\w+) (.*)$", text.partition("#line")[0], re.MULTILINE))
        return name, configuration, _loaded(text, name, self.folder)

    def run(self, module, kernel: Signature, grid, shared, values) -> None:
        slots = [_slot(self, value) for value in values]
        written = [
            (f"{parameter.name} {value.shape}", value.block.place)
            for parameter, value in zip(kernel.parameters, values, strict=True)
            if isinstance(value, HostArray)
        ]
        started(lambda: self._run(module, kernel, grid, shared, slots, written))

    def _run(self, module, kernel: Signature, grid, shared, slots, written) -> None:
        name, configuration, library = module
        LAUNCHED.add((name, configuration, kernel.name))
        pointers = (ctypes.c_void_p * len(slots))(*(slot.ctypes.data for slot in slots))
        launch = (ctypes.c_int * 6)(*grid, kernel.threads, shared, ORDERS.index(self.order))
        run = getattr(library, f"host_{kernel.name}")
        run.restype = ctypes.c_char_p
        problem = run(launch, pointers)
        if problem is not None:
            raise CudaError(f"{kernel.name}: {problem.decode()}")
        for array, place in written:
            if not place.is_intact():
                raise CudaError(f"{kernel.name} wrote outside of {array}")


def _slot(machine: HostGpu, value) -> np.ndarray:
    """One argument, in memory of its own."""
    if value is None:
        return np.zeros(1, np.uintp)
    return np.array([machine.address(value)], np.uintp) if isinstance(value, HostArray) else np.array([value])


def compiler() -> str | None:
    return shutil.which("g++")


def _loaded(text: str, name: str, folder: Path) -> ctypes.CDLL:
    if text not in HostGpu.libraries:
        path = ahead.result((name, text), compiled, text, name, folder)
        HostGpu.libraries[text] = ctypes.CDLL(str(path))
    return HostGpu.libraries[text]


def compiled(text: str, name: str, folder: Path) -> Path:
    """The library made of a source text, in this folder; it stays there for the next time."""
    here = Path(__file__).parent
    wrappers = "\n".join(_wrapper(signature) for signature in signatures(text, name).values())
    whole = f'{(here / "host.hpp").read_text()}\n{text}\n#line 1 "wrappers"\n{wrappers}\n'
    library = folder / f"{name}-{hashlib.sha256(repr((whole, OPTIONS)).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        source = library.with_suffix(".cpp")
        source.write_text(whole)
        partial = library.with_suffix(".partial")
        command = [compiler() or "g++", *OPTIONS, str(source), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CudaError(f"{name} does not compile on the host:\n{done.stderr}")
        partial.replace(library)
    return library


def _wrapper(kernel: Signature) -> str:
    """A function that takes the kernel's arguments as an array of addresses."""
    arguments = ", ".join(
        f"*({'const ' if p.is_constant else ''}{p.type} {'*' if p.is_pointer else ''}*)arguments[{i}]"
        for i, p in enumerate(kernel.parameters)
    )
    return f"""
extern "C" const char *host_{kernel.name}(const int *launch, void **arguments) {{
    auto call = [](void *data) {{ void **arguments = (void **)data; {kernel.name}({arguments}); }};
    return host::run(launch, call, arguments);
}}"""
