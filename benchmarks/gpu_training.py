"""A whole training step of a U-Net on a GPU against PyTorch: forward, loss, backward, SGD with momentum.

The networks are those of `training.py`, with the same weights, on the same images. tinyseg runs its steps one
kernel after the other, and as a CUDA graph; PyTorch as it is (eager), in both memory formats. Before the timing,
the logits and the gradients of the first and of the last layer are compared with those of PyTorch in float64, and
the graph's weights after some steps with those of the steps without a graph, which must be the same.

Here time is that of a clock on the wall, around a step that is waited for: what Python costs is part of it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import gpu_measure, training
from benchmarks.gpu_cases import FLOAT32, TF32, Pass
from tinyseg import cuda, optim
from tinyseg.models.summary import summarise

GOALS = {FLOAT32: 1.0, TF32: 0.8}
TOLERANCES = {  # of relative errors
    "logits": {FLOAT32: 1e-3, TF32: 5e-2},
    "gradient of the last layer": {FLOAT32: 1e-3, TF32: 5e-2},
    # Where rounding moves a number across 0, ReLU lets another gradient through, in each of 18 layers: with TF32
    # it is a quarter of what comes to the first one, from noise at least. What is wrong is off by 1 or more.
    "gradient of the first layer": {FLOAT32: 5e-2, TF32: 0.7},
}


class Setting(NamedTuple):
    base: int = 64
    depth: int = 4
    batch: int = 8
    side: int = 256

    def __str__(self) -> str:
        return f"U-Net, {self.base} channels, depth {self.depth}, batch {self.batch}, {self.side} x {self.side}"


# ------------------------------------------------------------------------------------------------- contenders


class Unwatched:
    """A step whose loss nobody reads, and which nobody waits for."""

    make_gradients: Callable[[], Any]
    optimiser: Any

    def __call__(self) -> None:
        self.make_gradients()
        self.optimiser.step()


class OurStep(Unwatched, training.OurStep):  # type: ignore[misc]
    """A step of tinyseg on the GPU."""

    def __init__(self, setting: Setting):
        super().__init__(*setting)
        self.operations = operations(self.network, setting)
        self.network.to("cuda")
        self.images, self.labels = cuda.to_device(self.images), cuda.to_device(self.labels)
        self.optimiser = optim.SGD(
            self.network.parameters(), lr=training.LEARNING_RATE, momentum=training.MOMENTUM
        )

    def found(self) -> list[torch.Tensor]:
        """What TOLERANCES names, in PyTorch's order of axes."""
        logits = gpu_measure.to_tensor(self.logits())
        self.make_gradients()
        layers: list[Any] = [self.network.classifier, self.network.contracting[0].conv1]
        gradients = [gpu_measure.to_tensor(layer.weight.grad) for layer in layers]
        return [gpu_measure.torch_order(logits), *(gpu_measure.torch_order(g, True) for g in gradients)]


class RecordedStep(OurStep):
    """The same as a CUDA graph. Making one takes a step, which compiles the kernels."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        super().__call__()
        with cuda.record() as self.graph:
            self.make_gradients()
            self.optimiser.apply()

    def __call__(self) -> None:
        self.optimiser.advance()
        self.graph.launch()


class TorchStep(Unwatched, training.TorchStep):  # type: ignore[misc]
    """A step of PyTorch."""

    def __init__(self, setting: Setting, place: str, memory_format: torch.memory_format, dtype=torch.float32):
        super().__init__(*setting, memory_format)
        self.network.to(place, dtype)
        self.images, self.labels = self.images.to(place, dtype), self.labels.to(place)
        self.optimiser = torch.optim.SGD(
            self.network.parameters(), lr=training.LEARNING_RATE, momentum=training.MOMENTUM
        )

    def found(self) -> list[torch.Tensor]:
        logits = self.network(self.images).detach()
        self.make_gradients()
        layers: list[Any] = [self.network.classifier, next(self.network.contracting[0].children())]
        return [logits, *(layer.weight.grad for layer in layers)]


WAYS: dict[str, type[OurStep]] = {"eager": OurStep, "CUDA graph": RecordedStep}


def operations(network: Any, setting: Setting) -> int:
    """Of a step: products forward, and twice as many backward, but no gradient of the images."""
    rows = summarise(network, setting.side, setting.side)
    return 2 * setting.batch * (3 * sum(row.multiply_adds for row in rows) - rows[0].multiply_adds)


# ------------------------------------------------------------------------------------------------------- timing


class WallClock:
    """A stopwatch of time as it passes, until the GPU has done everything."""

    was_ahead = False

    def burst(self, calls: Sequence[Callable[[], Any]]) -> list[float]:
        times = []
        for call in calls:
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        return times


# --------------------------------------------------------------------------------------------------------- rows


def rows(setting: Setting = Setting()) -> Iterator[tuple[dict[str, Any], tuple[str, str, Setting]]]:  # noqa: B008
    """What each row is about, and what `measure` takes to make it."""
    for precision in GOALS:
        for way in WAYS:
            yield identity(way, precision, setting), (way, precision, setting)


def identity(way: str, precision: str, setting: Setting) -> dict[str, Any]:
    return {"group": "training", "name": f"{setting}, {way}", "precision": precision}


def measure(
    way: str,
    precision: str,
    setting: Setting,
    card: gpu_measure.Card,
    stopwatch: gpu_measure.Stopwatch,
    place: str = "cuda",
) -> dict[str, Any]:
    """The row of tinyseg's steps done in this way, with this precision."""
    with gpu_measure.multiplying(precision):
        theirs = {name: TorchStep(setting, place, value) for name, value in gpu_measure.FORMATS.items()}
        errors = check(precision, setting, theirs, place)
        ours = WAYS[way](setting)
        if isinstance(ours, RecordedStep):
            check_recorded(ours, setting)
        contenders = {"tinyseg": [ours], **{name: [step] for name, step in theirs.items()}}
        timings = gpu_measure.alternate(stopwatch, contenders)
    floor = card.floor(Pass("step", None, bytes=0, flops=ours.operations), precision)
    return identity(way, precision, setting) | {
        "errors": errors,
        "operations": ours.operations,
        **gpu_measure.compared(timings, floor, GOALS[precision]),
    }


def check(
    precision: str, setting: Setting, theirs: dict[str, TorchStep], place: str
) -> dict[str, dict[str, float]]:
    """How far logits and gradients of all are from float64. Too far is an error, whoever it is."""
    with gpu_measure.cudnn(enabled=False):
        exact = TorchStep(setting, place, torch.contiguous_format, torch.float64).found()
    errors = {}
    for who, step in {"tinyseg": OurStep(setting), **theirs}.items():
        pairs = zip(TOLERANCES, step.found(), exact, strict=True)
        errors[who] = {what: gpu_measure.errors([found], [right]) for what, found, right in pairs}
        for what, error in errors[who].items():
            tolerance = TOLERANCES[what][precision]
            if not error < tolerance:
                raise AssertionError(
                    f"{who}: the {what} is off by {error:.2e} from float64, more than {tolerance}"
                )
    return errors


def check_recorded(recorded: RecordedStep, setting: Setting) -> None:
    """The graph does what the steps do, to the last bit."""
    step = OurStep(setting)
    for _ in range(3):
        step()
    for _ in range(2):  # it has taken one
        recorded()
    for ours, other in zip(recorded.network.parameters(), step.network.parameters(), strict=True):
        if not np.array_equal(cuda.to_host(ours.data), cuda.to_host(other.data)):
            raise AssertionError("the CUDA graph does not change the weights as the steps without it do")
