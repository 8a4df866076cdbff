"""Every kernel, in every configuration, compiles for real GPUs within its budget. No GPU and no driver is needed.

And no kernel is left out: each `.cu` file belongs to an operator, and its kernels have all run on the host.
"""

import importlib
import importlib.util
import pkgutil
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import ahead
import host_gpu
import pytest

import tinyseg
from tinyseg.cuda import kernels, nvrtc
from tinyseg.cuda.errors import CudaError

PACKAGE = Path(tinyseg.__file__).parent

for folder in ("ops", "crf", "optim"):
    for found in pkgutil.walk_packages([str(PACKAGE / folder)], f"tinyseg.{folder}."):
        importlib.import_module(found.name)

FILES = [file for file in kernels.FILES if file.path.is_relative_to(PACKAGE)]

# Kilobytes of shared memory that one multiprocessor has for its blocks, which take one more each.
SHARED = {75: 64, 80: 164, 90: 228}

HAS_BFLOAT16 = importlib.util.find_spec("ml_dtypes") is not None

NEWER_THAN_75 = re.compile(r"\b(copy_async|mma_tf32|to_tf32|mma_bfloat16)\b")


class Usage(NamedTuple):
    """What one thread (or with shared memory, one block) of a kernel takes."""

    registers: int
    stack: int  # bytes of local memory: arrays with an index that is calculated
    spilled: int  # bytes of local memory: variables that found no register
    shared: int


def usages(log: str) -> dict[str, Usage]:
    """The assembler's report."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        numbers = [
            re.search(pattern, part)
            for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack", r"(\d+) bytes smem")
        ]
        spilled = [int(number) for number in re.findall(r"(\d+) bytes spill", part)]
        registers, stack, shared = (int(number[1]) if number else 0 for number in numbers)
        found[part.partition("'")[0]] = Usage(registers, stack, sum(spilled), shared)
    return found


def nvrtc_problem() -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            nvrtc.version()
        except CudaError as error:
            return str(error)
    return None


@pytest.fixture(scope="module")
def compiler() -> None:
    problem = nvrtc_problem()
    if problem is not None:
        pytest.skip(f"kernels are not compiled for GPUs: {problem}")


def compile_ahead(folder: Path | None) -> None:
    """Begin all that the tests of this folder have compilers do: for the host into this folder, and for GPUs."""
    has_nvrtc, has_host = nvrtc_problem() is None, folder is not None and host_gpu.compiler() is not None
    for file in sorted(FILES, key=lambda file: file.path.name):
        for configuration in file.configurations():
            text, name = file.source(configuration), file.path.name
            if has_host:
                ahead.begin((name, text), host_gpu.compiled, text, name, folder)
            for capability in capabilities(file) if has_nvrtc else ():
                ahead.begin((name, text, capability), nvrtc.compile, text, name, capability)


def capabilities(file: kernels.KernelFile) -> list[int]:
    """The generations of GPUs that a file is for: some have instructions that came with 8.0."""
    return [capability for capability in SHARED if capability > 75 or not NEWER_THAN_75.search(file.text)]


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path.stem)
def test_every_configuration_keeps_to_its_budget(compiler, file, capability):
    if capability not in capabilities(file):
        return
    for configuration in file.configurations():
        text, name = file.source(configuration), file.path.name
        log = ahead.result((name, text, capability), nvrtc.compile, text, name, capability).log
        found = usages(log)
        assert found.keys() == file.kernels.keys()
        for kernel, signature in file.kernels.items():
            usage = found[kernel]
            where = f"{kernel} {dict(configuration)} for {capability}: {usage}"
            assert usage.stack == usage.spilled == 0, f"{where} needs local memory"
            assert usage.registers <= signature.register_budget, f"{where} needs more registers than its budget"
            room = SHARED[capability] * 1024
            assert signature.blocks * (usage.shared + 1024) <= room, f"{where} needs more shared memory"


def test_every_file_of_kernels_belongs_to_an_operator():
    assert {file.path for file in FILES} == set(PACKAGE.rglob("*.cu"))


def test_every_kernel_has_run_on_the_host(request, host):
    """This one runs after all other tests of the folder."""
    here = Path(__file__).parent
    collected = {item.path for item in request.session.items}
    if not set(here.glob("test_*.py")) <= collected or request.config.option.keyword:
        pytest.skip("only some of the tests of kernels have run")
    ran = {(name, dict(configuration)["SCALAR"], kernel) for name, configuration, kernel in host_gpu.LAUNCHED}
    for file in FILES:
        for kernel, signature in file.kernels.items():
            # A kernel without a scalar among its parameters is the same in all, and run in one of them; with
            # `real` alone, in those that it may be.
            types = {parameter.type for parameter in signature.parameters}
            scalars = [scalar for scalar in file.choices["SCALAR"] if scalar != "bfloat16" or HAS_BFLOAT16]
            if "scalar" not in types:
                scalars = [scalar for scalar in scalars if scalar != "bfloat16"]
            if "bfloat16" in types and not HAS_BFLOAT16:
                continue
            missing = [scalar for scalar in scalars if (file.path.name, scalar, kernel) not in ran]
            depends = not types.isdisjoint({"scalar", "real"})
            assert not missing or (not depends and len(missing) < len(scalars)), (file.path.name, kernel, missing)
        for configuration in file.configurations():
            if "bfloat16" in dict(configuration).values() and not HAS_BFLOAT16:
                continue
            as_text = tuple((name, str(value)) for name, value in configuration)
            assert any(launched[:2] == (file.path.name, as_text) for launched in host_gpu.LAUNCHED)
