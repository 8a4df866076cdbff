"""Compiles kernels with NVIDIA's runtime compiler. It needs its library, and neither a driver nor a GPU."""

from functools import cache
from typing import NamedTuple

from tinyseg.cuda.errors import CudaError


class Compiled(NamedTuple):
    binary: bytes  # machine code, or the assembly language PTX, which the driver translates
    log: str  # what the assembler says about registers and memory


def compile(text: str, name: str, capability: int) -> Compiled:
    """Compile for a GPU of this compute capability (90 is 9.0): nothing is included, no option changes results.

    A compiler that is older than the GPU does not know its machine code. Then it makes PTX for the newest that it
    knows.
    """
    nvrtc = _library()
    known = _capabilities()
    is_known = capability in known
    target = f"sm_{capability}" if is_known else f"compute_{max(c for c in known if c <= capability)}"
    options = (f"-arch={target}", "-std=c++17", *(("--ptxas-options=-v",) if is_known else ()))
    program = nvrtc.createProgram(text, name, (), ())
    try:
        nvrtc.compileProgram(program, options)
        binary = nvrtc.getCUBIN(program) if is_known else nvrtc.getPTX(program)
        return Compiled(binary, nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).rstrip("\x00\n")
        raise CudaError(f"{name} does not compile for {target}:\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)


def version() -> tuple[int, int]:
    return _library().getVersion()


@cache
def _capabilities() -> tuple[int, ...]:
    return tuple(_library().getSupportedArchs())


@cache
def _library():
    try:
        from cupy_backends.cuda.libs import nvrtc  # type: ignore[import-not-found]

        nvrtc.getVersion()  # only now the library is looked for
    except ImportError as error:
        raise CudaError("CuPy is not installed; `pip install 'tinyseg[cuda13]'` (or cuda12) brings it") from error
    except Exception as error:  # it depends on CuPy's version, which kind
        raise CudaError(
            "NVIDIA's compiler NVRTC was not found; `pip install nvidia-cuda-nvrtc` brings that of CUDA 13, "
            "`pip install nvidia-cuda-nvrtc-cu12` that of CUDA 12"
        ) from error
    return nvrtc
