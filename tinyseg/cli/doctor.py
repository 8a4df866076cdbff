"""`tinyseg doctor`: what this computer offers, and what is in the way."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import typer


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    text: str
    state: Literal["good", "note", "bad"] = "good"


def command() -> None:
    """Show what tinyseg finds on this computer: versions, threads, BLAS,
    compiler cache, GPU, memory and disk.

    Ends with exit code 1 if something keeps it from working.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    marks = {"good": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("bad ", "red")}
    found = []
    for finding in findings():
        mark, colour = marks[finding.state]
        found.append(finding)
        line = Text.assemble((mark, colour), f" {finding.subject:<10} {finding.text}")
        console.print(line, soft_wrap=True)
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(1)


def findings() -> Iterator[Finding]:
    yield from _versions()
    yield _threads()
    yield from _blas()
    yield from _numba()
    yield _gpu()
    yield _memory()
    yield _disk()


def _versions() -> Iterator[Finding]:
    import importlib.metadata

    import tinyseg

    yield Finding("tinyseg", f"{tinyseg.__version__} in {Path(tinyseg.__file__).parent}")
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    needed = ("numpy", "numba", "scipy", "pillow", "matplotlib", "safetensors", "typer", "rich", "tomli-w")
    versions, missing = [], []
    for name in needed:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", ", ".join(versions))
    if missing:
        yield Finding("packages", f"missing: {', '.join(missing)}; pip install {' '.join(missing)}", "bad")


def _threads() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen = {name: os.environ[name] for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS") if name in os.environ}
    rest = "".join(f", {name}={value}" for name, value in chosen.items())
    return Finding("processor", f"{_processor()}: {usable} of {os.cpu_count()} cores usable{rest}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _blas() -> Iterator[Finding]:
    import numpy  # noqa: F401
    import scipy.linalg.cython_blas  # noqa: F401  SciPy's wheels carry a BLAS of their own
    import threadpoolctl

    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas":
            owner = "SciPy" if Path(library["filepath"]).parent.name.startswith("scipy") else "NumPy"
            kind = f"{library['internal_api']} {library['version'] or ''} {library.get('architecture', '')}"
            yield Finding("BLAS", f"{owner}: {' '.join(kind.split())}, {library['num_threads']} threads")


def _numba() -> Iterator[Finding]:
    try:
        import numba
        import numpy as np

        import tinyseg
        from tinyseg import ops

        began = time.perf_counter()
        x = np.array([[-1.0, 2.0]], np.float32)
        with tinyseg.use("numba"):
            y, _ = ops.relu(x)
        right = y.tolist() == [[0.0, 2.0]]
        seconds = time.perf_counter() - began
    except Exception as error:  # whatever it is, the report goes on
        yield Finding("Numba", f"cannot compile: {type(error).__name__}: {error}; pip install -U numba", "bad")
        return
    if not right:
        yield Finding("Numba", f"compiles, but relu([-1, 2]) gave {y.tolist()}", "bad")
    layer = numba.threading_layer()  # type: ignore[reportPrivateImportUsage]
    yield Finding(
        "Numba", f"compiles and runs (relu, {seconds:.1f} s), {numba.get_num_threads()} threads, layer {layer}"
    )
    if layer == "workqueue":
        yield Finding(
            "Numba", "no OpenMP was found; parallel loops start slowly. Install libgomp (Linux) or libomp", "note"
        )
    yield _cache()


def _cache() -> Finding:
    """Where Numba keeps compiled kernels: beside the sources, or in the user's cache folder."""
    import tinyseg.ops

    beside = Path(tinyseg.ops.__file__).parent / "__pycache__"
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or beside)
    if _writable(folder):
        return Finding("cache", f"compiled kernels are kept in {folder}")
    home = Path.home() / ".cache" / "numba"
    if _writable(home):
        return Finding("cache", f"compiled kernels are kept in {home}, as {folder} is read-only")
    return Finding(
        "cache",
        f"neither {folder} nor {home} can be written to, so every start compiles anew (a minute); set "
        "NUMBA_CACHE_DIR to a folder of yours",
        "note",
    )


def _writable(folder: Path) -> bool:
    """Whether a file can be made in the folder, or the folder itself where it does not exist."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _gpu() -> Finding:
    import numpy as np

    from tinyseg import cuda, ops
    from tinyseg.cuda import machine

    if machine.driver() is None:
        return Finding("GPU", "none with an NVIDIA driver; everything runs on the CPU")
    reason = machine.problem()
    if reason is not None:
        return Finding("GPU", f"{reason}. Until then everything runs on the CPU", "note")
    try:
        began = time.perf_counter()
        y = cuda.to_host(ops.relu(cuda.to_device(np.array([-1.0, 2.0], np.float32)))[0])
        seconds = time.perf_counter() - began
        name, memory = machine.name(), cuda.memory()
    except Exception as error:  # whatever it is, the report goes on
        return Finding("GPU", f"kernels do not run: {error}", "bad")
    if y.tolist() != [0.0, 2.0]:
        return Finding("GPU", f"{name} runs kernels, but relu([-1, 2]) gave {y.tolist()}", "bad")
    return Finding("GPU", f"{name} compiles and runs kernels (relu, {seconds:.1f} s), {memory}")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.endswith("kB")}
        available = sizes["MemAvailable"]
        text = f"{available:.1f} of {sizes['MemTotal']:.1f} GiB free"
    except (OSError, KeyError, ValueError):
        return Finding("memory", "unknown on this system")
    if available < 1.5:
        return Finding("memory", f"{text}: training needs about 1 GiB or more", "note")
    return Finding("memory", text)


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    text = f"{free:.1f} GiB free in {Path.cwd()}"
    if not _writable(Path.cwd()):
        return Finding(
            "disk", f"{Path.cwd()} cannot be written to; run elsewhere, or choose run folders with --out", "note"
        )
    return Finding("disk", text, "good" if free > 0.5 else "note")
