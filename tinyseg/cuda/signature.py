"""Reads from a `.cu` file which kernels it has, with what launch bounds, and what arguments they take.

A kernel begins like this, and the rest is C++:

    KERNEL(256, 4) void relu_forward(const scalar *x, scalar slope, scalar *y, int64 n) {

256 is the number of threads in a block. 4 is the number of blocks that must fit on one multiprocessor at the same
time, which is the kernel's budget: 65536 registers / (256 * 4) = 64 for each thread. The compiler keeps to it, and
a test fails if it had to put variables into memory for that.
"""

import re
from typing import NamedTuple

import numpy as np

REGISTERS = 65536  # of one multiprocessor, on every GPU since 2014
WARP = 32

TYPES = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "int": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "uint64": np.uint64,
    "float": np.float32,
    "double": np.float64,
}
"""What the names of types in kernels mean. `scalar` is float, double or bfloat16, as the file is compiled, and
`real` what it is calculated with."""


def array_type(name: str) -> np.dtype:
    """What NumPy calls a type of kernels. For bfloat16 that takes the package ml_dtypes."""
    return bfloat16() if name == "bfloat16" else np.dtype(TYPES[name])


def bfloat16() -> np.dtype:
    """A float32 without the last 16 bits of its mantissa, for arrays on a GPU."""
    try:
        import ml_dtypes  # type: ignore[import-not-found]
    except ImportError:
        raise ModuleNotFoundError(
            "bfloat16 comes to NumPy with the package ml_dtypes, which is not installed; `pip install ml_dtypes`"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


def real(dtype: np.dtype) -> np.dtype:
    """The type of parameters and of arithmetic, where arrays are of type `dtype`: float32 for bfloat16."""
    return np.dtype(np.float32) if np.dtype(dtype).name == "bfloat16" else np.dtype(dtype)


class Parameter(NamedTuple):
    name: str
    type: str  # a key of TYPES, or a name that the file is compiled with: scalar, real, ...
    is_pointer: bool
    is_constant: bool  # the kernel does not write through this pointer


class Signature(NamedTuple):
    """What stands before the body of a kernel."""

    name: str
    threads: int  # of one block
    blocks: int  # that fit on one multiprocessor
    parameters: tuple[Parameter, ...]

    @property
    def register_budget(self) -> int:
        """Registers for each thread. They are handed out in eights, and nobody gets more than 255."""
        return min(255, REGISTERS // (self.threads * self.blocks) // 8 * 8)


_HEAD = re.compile(r"^KERNEL\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*void\s+(\w+)\s*\(([^)]*)\)\s*\{", re.MULTILINE)
_PARAMETER = re.compile(r"(const\s+)?(\w+)\s*(\*)?\s*(?:__restrict__\s+)?(\w+)")


def signatures(text: str, name: str = "source") -> dict[str, Signature]:
    """The kernels of a file, by name."""
    text = re.sub(r"//[^\n]*", "", text)
    heads = [match.groups() for match in _HEAD.finditer(text)]
    if len(heads) != len(re.findall(r"^KERNEL\(", text, re.MULTILINE)):
        raise ValueError(f"{name}: write kernels as KERNEL(threads, blocks) void name(...) {{, with plain numbers")
    found = {}
    for threads, blocks, kernel, parameters in heads:
        if int(threads) % WARP or int(threads) > 1024:
            raise ValueError(f"{name}: {kernel} has {threads} threads; take a multiple of {WARP} up to 1024")
        parsed = tuple(_parameter(part, f"{name}: {kernel}") for part in parameters.split(","))
        found[kernel] = Signature(kernel, int(threads), int(blocks), parsed)
    return found


def _parameter(text: str, where: str) -> Parameter:
    match = _PARAMETER.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{where}: cannot read the parameter {text.strip()!r}; write `const scalar *x` or `int n`"
        )
    constant, type_name, star, name = match.groups()
    return Parameter(name, type_name, star is not None, constant is not None)
