"""`tinyseg bench`: how fast this computer runs a few operators and a training step."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

SIDE = 64
"""Height and width of the activations that are timed."""


def command(
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Time to spend on each line.")] = 1.0,
    backend: Annotated[str, typer.Option("--backend", help="numba, or numpy for the plain references.")] = "numba",
) -> None:
    """Time a few operators and a training step of a small U-Net on this
    computer.

    Medians after a first call that compiles. For a comparison with PyTorch,
    with checks against float64, run [bold]python -m benchmarks[/] in a
    checkout.
    """
    from rich.console import Console
    from rich.table import Table

    import tinyseg
    from tinyseg.train.errors import SettingError

    if backend not in ("numba", "numpy"):
        raise SettingError(f"--backend must be numba or numpy, got {backend!r}")
    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "median ms", "fastest", "slowest", "calls", "GFLOP/s"):
        table.add_column(heading, justify="right" if heading else "left")
    with tinyseg.use(backend), console.status("compiling and timing", spinner="line"):  # type: ignore[arg-type]
        for name, function, flops in cases():
            times = sorted(measure(function, seconds))
            median = times[len(times) // 2]
            rate = f"{flops / median / 1e9:.1f}" if flops else ""
            milliseconds = (f"{1e3 * value:.2f}" for value in (median, times[0], times[-1]))
            table.add_row(name, *milliseconds, str(len(times)), rate)
    console.print(table)


def measure(function: Callable[[], Any], seconds: float) -> list[float]:
    """The durations of calls during about so many seconds, at least 3 calls; the first call is not counted."""
    import time

    function()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return times


def cases() -> list[tuple[str, Callable[[], Any], float]]:
    """Names, functions to time, and multiplications and additions of a call (0: not worth stating)."""
    import numpy as np

    from tinyseg import ops

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, SIDE, SIDE, 32), np.float32)
    w = rng.standard_normal((3, 3, 32, 32), np.float32)
    labels = rng.integers(0, 32, x.shape[:3])
    scale, shift = np.ones(32, np.float32), np.zeros(32, np.float32)
    y, conv_cache = ops.conv2d(x, w, padding=1)
    _, norm_cache = ops.batch_norm(x, scale, shift, relu=True)
    flops = 2.0 * y.size * w.shape[0] * w.shape[1] * w.shape[2]
    return [
        (f"conv2d 3x3, 4 x {SIDE} x {SIDE}, 32 to 32 channels", lambda: ops.conv2d(x, w, padding=1), flops),
        ("    backward", lambda: ops.conv2d_backward(y, conv_cache), 2 * flops),
        ("batch_norm with ReLU", lambda: ops.batch_norm(x, scale, shift, relu=True), 0.0),
        ("    backward", lambda: ops.batch_norm_backward(x, norm_cache), 0.0),
        ("max_pool2d 2x2", lambda: ops.max_pool2d(x, 2), 0.0),
        ("resize, twice the size", lambda: ops.resize(x, scale=2), 0.0),
        ("cross_entropy, 32 classes", lambda: ops.cross_entropy(x, labels), 0.0),
        (f"training step, padded U-Net (base 16, depth 3), 4 x {SIDE} x {SIDE}", training_step(), 0.0),
    ]


def training_step() -> Callable[[], Any]:
    import numpy as np

    from tinyseg import functional as F
    from tinyseg import models, optim
    from tinyseg.tape import Tensor

    rng = np.random.default_rng(0)
    network = models.create("unet_padded", 3, 6, base=16, depth=3, rng=rng)
    optimiser = optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = Tensor(rng.standard_normal((4, SIDE, SIDE, 3), np.float32))
    labels = rng.integers(0, 6, (4, SIDE, SIDE))

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()

    return step
