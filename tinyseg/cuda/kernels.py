"""A file of kernels, and the one way to launch them.

A launch goes wrong silently: a transposed array is read as if it were not, a Python float becomes a double where
the kernel takes a float, an index overflows. So every launch goes through `KernelFile.launch`, which compares each
argument with the kernel's own signature, read from the source.
"""

import itertools
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyseg.backend import Array
from tinyseg.cuda import device
from tinyseg.cuda.arguments import Check, check_of
from tinyseg.cuda.signature import Signature, array_type, real, signatures

GRID_LIMIT = (2**31 - 1, 65535, 65535)  # blocks along x, y and z
STATIC_SHARED = 48 * 1024

FLOATS = ("float", "double")
WITH_BFLOAT16 = (*FLOATS, "bfloat16")
SCALARS = {"float32": "float", "float64": "double", "bfloat16": "bfloat16"}  # by the name of an array's type

Configuration = tuple[tuple[str, Any], ...]  # the names that a source is compiled with, and their values

FILES: list["KernelFile"] = []
"""Every file of kernels whose operator has been imported."""


class KernelFile:
    """The kernels in the `.cu` file beside an operator's own file.

        _cuda = KernelFile(__file__)
        _cuda.launch("relu_forward", x, slope, y, x.size, threads=quads(x.size))

    The same text is compiled with `scalar` as float and as double; the arrays of a launch decide which of the two
    it takes. A file can be compiled with further names, each with a few values. Then the launch chooses:

        _cuda = KernelFile(__file__, WIDTH=(1, 4))
        _cuda.launch("normalise", x, y, pixels, threads=..., WIDTH=4)

    scalars: WITH_BFLOAT16 for files that can store in bfloat16, too: they calculate in `real`, and take their
        parameters as `real`. "double" is left out by a file that is for one type only.
    headers: files beside it that several files of kernels share, put before its text.
    unused: values of names, SCALAR among them, that are never chosen together.
    """

    def __init__(
        self,
        beside: str,
        *,
        scalars: Sequence[str] = FLOATS,
        headers: Sequence[str] = (),
        unused: Sequence[dict[str, Any]] = (),
        **choices: Sequence,
    ):
        self.path = Path(beside).with_suffix(".cu")
        self.headers = headers
        self.unused = unused
        self.choices: dict[str, Sequence] = {"SCALAR": scalars, **choices}
        self._modules: dict[tuple[device.Device, Configuration], Any] = {}
        self._prepared: dict[tuple[device.Device, str, Configuration], Prepared] = {}
        FILES.append(self)

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def kernels(self) -> dict[str, Signature]:
        return signatures(self.text, self.path.name)

    def configurations(self) -> list[Configuration]:
        """Every way in which this file may be compiled."""
        products = [
            dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())
        ]
        return [
            tuple(chosen.items())
            for chosen in products
            if not any(u.items() <= chosen.items() for u in self.unused)
        ]

    def source(self, configuration: Configuration) -> str:
        """The whole text that is compiled."""
        defines = "".join(f"#define {name} {value}\n" for name, value in configuration)
        parts = {"common.cuh": _common()}
        parts |= {name: self.path.with_name(name).read_text() for name in self.headers}
        parts |= {self.path.name: self.text}
        return defines + "".join(f'#line 1 "{name}"\n{text}\n' for name, text in parts.items())

    def launch(
        self,
        kernel: str,
        *arguments: Any,
        threads: int | None = None,
        blocks: int | Sequence[int] | None = None,
        shared: int = 0,
        **choice: Any,
    ) -> None:
        """Run a kernel on the current device, on its current stream. The kernel fills its arrays.

        arguments: as in the kernel's signature. Arrays must be C-contiguous and on the device (see `contiguous`).
            None is a null pointer. Numbers are converted to the type that the kernel takes.
        threads: how many threads are needed; as many blocks are started as that takes. Or
        blocks: how many blocks: a number, or up to three of them. With 0 of them nothing is done.
        shared: bytes of dynamic shared memory, for kernels with DYNAMIC_SHARED.
        """
        signature = self.kernels[kernel]
        grid = _grid(signature, threads, blocks)
        if 0 in grid:
            return
        machine = device.current()
        if shared > machine.shared_limit:
            raise ValueError(f"{kernel}: {shared} bytes of shared memory are more than {machine.shared_limit}")
        key = (machine, kernel, self._configuration(signature, arguments, choice))
        if key not in self._prepared:
            self._prepared[key] = self._prepare(*key)
        prepared = self._prepared[key]
        if len(arguments) != len(prepared.checks):
            listing = ", ".join(parameter.name for parameter in signature.parameters)
            raise TypeError(
                f"{kernel} takes {len(signature.parameters)} arguments ({listing}), got {len(arguments)}"
            )
        values = [check(machine, argument) for check, argument in zip(prepared.checks, arguments, strict=True)]
        machine.run(prepared.module, signature, grid, shared, values)

    def _configuration(self, signature: Signature, arguments: Sequence, choice: dict[str, Any]) -> Configuration:
        """The arrays give the scalar; what the launch does not choose has its first value."""
        chosen = {name: values[0] for name, values in self.choices.items()} | choice
        arrays: dict[str, Array] = {}  # the first one of each type
        for parameter, argument in zip(signature.parameters, arguments, strict=False):
            if parameter.is_pointer and argument is not None:
                arrays.setdefault(parameter.type, argument)
        decisive = arrays.get("scalar", arrays.get("real"))
        if decisive is not None:
            chosen["SCALAR"] = _scalar(decisive.dtype)
        return tuple(chosen.items())

    def _prepare(self, machine: device.Device, kernel: str, configuration: Configuration) -> "Prepared":
        """Compile the file, and find out what the kernel takes."""
        for name, value in configuration:
            if name == "SCALAR" and value == "bfloat16" and value not in self.choices[name]:
                raise TypeError(f"{kernel}: it cannot take bfloat16; use tinyseg.ops.cast(x, dtype='float32')")
            if value not in self.choices.get(name, ()):
                raise ValueError(f"{self.path.name} is not compiled with {name} = {value}, only {self.choices}")
        parameters = self.kernels[kernel].parameters
        checks = [check_of(kernel, parameter, _type(parameter.type, configuration)) for parameter in parameters]
        if (machine, configuration) not in self._modules:
            module = machine.load(self.source(configuration), self.path.name)
            self._modules[machine, configuration] = module
        return Prepared(self._modules[machine, configuration], checks)


class Prepared(NamedTuple):
    """A kernel that is ready to be launched."""

    module: Any
    checks: list[Check]  # of its arguments


def _type(name: str, configuration: Configuration) -> np.dtype:
    """The type of a parameter that the source gives this one. It may be a name that the file is compiled with."""
    chosen = dict(configuration)
    if name in ("scalar", "real"):
        scalar = array_type(chosen["SCALAR"])
        return real(scalar) if name == "real" else scalar
    return array_type(chosen.get(name, name))


@cache
def _scalar(dtype: np.dtype) -> str | None:
    return SCALARS.get(dtype.name)


def _grid(signature: Signature, threads: int | None, blocks: int | Sequence[int] | None) -> tuple[int, int, int]:
    if (threads is None) == (blocks is None):
        raise TypeError(f"{signature.name}: give threads or blocks, one of the two")
    if threads is not None:
        blocks = -(-int(threads) // signature.threads)
    given = tuple(blocks) if isinstance(blocks, tuple | list) else (blocks,)
    x, y, z = (*map(int, given), 1, 1)[:3]  # type: ignore[arg-type]
    if any(not 0 <= count <= limit for count, limit in zip((x, y, z), GRID_LIMIT, strict=True)):
        raise ValueError(f"{signature.name}: {x} x {y} x {z} blocks; a GPU takes up to {GRID_LIMIT}")
    return x, y, z


@cache
def _common() -> str:
    return Path(__file__).with_name("common.cuh").read_text()
