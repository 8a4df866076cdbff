"""How a comparison is timed, checked and written down.

The rules, so that a ratio means something:

* Both contenders get the same numbers. Before anything is timed, the result of each is compared with float64; a
  result that is off by more than the tolerance is an error, and how far each one is off is written down.
* They run alternately in one process: a burst of calls of the one, a pause in which its threads go to sleep, a
  burst of the other, over and over. What disturbs the machine then disturbs both. The median over all calls is the
  figure, the quartiles say how noisy it was.
* PyTorch may choose its memory format: it runs both, and the faster one counts.
* Both allocate from a C library told to keep its memory (`keep_memory`). By default it hands every array above
  32 MB back to the operating system, and PyTorch loses up to ten times its time to that on a CPU.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "100000000",
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    median: float
    lower_quartile: float
    upper_quartile: float
    calls: int


def alternate(
    contenders: Mapping[str, Callable[[], Any]], *, bursts: int = 7, seconds: float = 0.15, pause: float = 0.02
) -> dict[str, Timing]:
    """Time functions alternately: `bursts` times each, about `seconds` a burst, with a pause between bursts."""
    calls = {}
    for name, function in contenders.items():
        function()  # compiles, allocates, fills caches
        start = time.perf_counter()
        function()
        calls[name] = max(1, int(seconds / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(bursts):
        for name, function in contenders.items():
            time.sleep(pause)
            function()  # wakes the threads; not counted
            for _ in range(calls[name]):
                start = time.perf_counter()
                function()
                samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: timing(sample) for name, sample in samples.items()}


def timing(sample: Sequence[float]) -> Timing:
    lower, median, upper = statistics.quantiles(sample, n=4) if len(sample) > 1 else sample * 3
    return Timing(round(median, 4), round(lower, 4), round(upper, 4), len(sample))


def relative_error(result: np.ndarray, exact: np.ndarray) -> float:
    """|result - exact| / |exact|, Euclidean norms."""
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


def require_close(what: str, who: str, result: np.ndarray, exact: np.ndarray, tolerance: float) -> float:
    """The relative error of a float32 result; too large a one is an error, since speed is nothing then."""
    error = relative_error(np.asarray(result, np.float64), exact)
    if not error < tolerance:
        raise AssertionError(f"{what}: {who} is off by {error:.2e} from float64, more than {tolerance:.0e}")
    return error


def keep_memory() -> None:
    """Restart this program with a C library that keeps freed memory, unless it already runs so (Linux only)."""
    if sys.platform == "linux" and "MALLOC_TOP_PAD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import numba
    import scipy
    import torch

    import tinyseg

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "memory keeping malloc": "MALLOC_TOP_PAD_" in os.environ,
        "python": platform.python_version(),
        "tinyseg": tinyseg.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "numba": numba.__version__,
        "numba threads": numba.get_num_threads(),
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    return f"{fields.get('model name', platform.processor())} {widest}".strip()


def rival_of(row: Mapping[str, Any]) -> str:
    """With whom this row compares tinyseg."""
    return next(name for name in ("torch", "pydensecrf") if name in row)


def write(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows of one benchmark with a description of the machine to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": list(rows)}, indent=1) + "\n")
    return path
