"""How operators are compared with PyTorch on a GPU, and with what the card could do at best.

The rules, beyond those of `harness`:

* PyTorch searches for cuDNN's fastest algorithm (`torch.backends.cudnn.benchmark`), runs in both memory formats,
  and the faster one counts.
* Both multiply with the same precision: float32, with TF32 forbidden to both (PyTorch allows it to convolutions by
  default), or TF32, allowed to both. tinyseg's float32 is three TF32 products on tensor cores.
* Before a pass is timed, its results are compared with PyTorch's float64. Memory that tinyseg's results go to is
  filled with NaN before. PyTorch's format that is off by more than the tolerance does not compete.
* The buffers of all sets together are larger than the card's cache by far, and take turns: nobody finds his inputs
  in the cache.
* Time is that of the GPU. Calls are queued while it is kept busy, so it never waits for Python, and CUDA events
  between the calls say when each was done. What Python costs is seen in the training step, not here.
* The floor is what the card needs at least: the pass's bytes at the rate of a measured copy, or its operations at
  the rate of a measured matrix product, whichever is longer. For float32 that product is cuBLAS's, or a third of
  its rate with TF32, whichever is faster. (An algorithm with fewer multiplications than the formula can go below.)
"""

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from benchmarks import harness
from benchmarks.gpu_cases import FLOAT32, TF32, Case, Pass
from tinyseg import cuda
from tinyseg.backend import Array

TOLERANCES = {FLOAT32: 2e-5, TF32: 2e-3}  # Euclidean norm of the error, relative
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
SAMPLES = 60  # of each contender
BURST = 6  # calls in the queue at once
CACHES = 3  # so many times the size of the card's cache are the buffers that take turns, at least

Call = Callable[[], Any]


# -------------------------------------------------------------------------------------------------- exchange


def to_array(tensor: torch.Tensor) -> Array:
    """What operators take: on a GPU the same memory; a tensor in the host's memory is copied to the device."""
    if tensor.is_cuda:
        import cupy  # type: ignore[import-not-found]

        return cupy.from_dlpack(tensor.detach())
    return cuda.to_device(tensor.detach().numpy())


def to_tensor(array: Array) -> torch.Tensor:
    """The other way round."""
    return torch.from_dlpack(array) if hasattr(array, "__dlpack__") else torch.from_numpy(cuda.to_host(array))


def torch_order(tensor: torch.Tensor, is_weight: bool = False) -> torch.Tensor:
    """N H W C as N C H W, R S C O as O C R S, of the same memory. Other numbers of axes stay as they are."""
    if tensor.ndim != 4:
        return tensor
    return tensor.permute(3, 2, 0, 1) if is_weight else tensor.permute(0, 3, 1, 2)


class Inputs(NamedTuple):
    """One set of buffers, in the order of axes of tinyseg."""

    x: torch.Tensor
    weights: tuple[torch.Tensor, ...]
    labels: tuple[torch.Tensor, ...]  # one or none
    dy: torch.Tensor

    @classmethod
    def draw(cls, case: Case, place: str, seed: int) -> "Inputs":
        generator = torch.Generator(place).manual_seed(seed)

        def normal(shape: Sequence[int]) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=place)

        x, weights = normal(case.x), tuple(map(normal, case.weights))
        labels = ()
        if case.classes:
            labels = (torch.randint(case.classes, case.x[:3], generator=generator, device=place),)
        with torch.no_grad():
            y = case.theirs(torch_order(x), *(torch_order(w, True) for w in weights), *labels)
        dy = normal([y.shape[axis] for axis in (0, 2, 3, 1)] if y.ndim == 4 else ())
        return cls(x, weights, labels, dy)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.x, *self.weights, *self.labels, self.dy))


# ------------------------------------------------------------------------------------------------- contenders


def our_call(case: Case, direction: Pass, inputs: Inputs) -> Call:
    """One pass as tinyseg runs it. A backward pass has had its forward pass."""
    arguments = [to_array(tensor) for tensor in (inputs.x, *inputs.weights, *inputs.labels)]
    if direction.need is None:
        return lambda: case.ours(*arguments)
    _, cache = case.ours(*arguments)
    dy, need = to_array(inputs.dy), direction.need
    return lambda: case.ours_backward(dy, cache, need)


def our_results(case: Case, direction: Pass, call: Call) -> list[torch.Tensor]:
    """In PyTorch's order of axes."""
    results = call()
    if direction.need is None:
        results = results[:1]
    elif not isinstance(results, tuple):
        results = (results,)
    made = [to_tensor(result) for result in results if result is not None]
    return [torch_order(tensor, is_weight) for tensor, is_weight in zip(made, _weights(direction), strict=True)]


def torch_call(
    case: Case,
    direction: Pass,
    inputs: Inputs,
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], Sequence[torch.Tensor]]:
    """The same as PyTorch runs it, without what its autograd would do besides."""

    def prepared(tensor: torch.Tensor, is_weight: bool = False) -> torch.Tensor:
        tensor = torch_order(tensor, is_weight).to(dtype)
        return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor

    tensors = [prepared(inputs.x), *(prepared(w, True) for w in inputs.weights)]
    if direction.need is None:
        return lambda: (case.theirs(*tensors, *inputs.labels),)
    wanted = [t.requires_grad_() for t, needed in zip(tensors, direction.need, strict=True) if needed]
    y, dy = case.theirs(*tensors, *inputs.labels), prepared(inputs.dy)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def _weights(direction: Pass) -> list[bool]:
    """Of each result: is it laid out as weights are?"""
    if direction.need is None:
        return [False]
    return [bool(index) for index, needed in enumerate(direction.need) if needed]


# ----------------------------------------------------------------------------------------------------- checks


def errors(results: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The largest relative error among several results, NaN if there is one."""
    assert [r.shape for r in results] == [e.shape for e in exact]
    return float(
        np.max([((r.double() - e).norm() / e.norm()).item() for r, e in zip(results, exact, strict=True)])
    )


def poison(results: Sequence[torch.Tensor]) -> None:
    """Fill memory of these sizes with NaN and free it: the next results get it."""
    kept = [to_tensor(cuda.empty(tuple(result.shape), np.dtype(np.float32))) for result in results]
    for tensor in kept:
        tensor.fill_(math.nan)


def check(
    case: Case, direction: Pass, precision: str, inputs: Inputs, ours: Call, theirs: Mapping[str, Call]
) -> dict[str, float]:
    """How far tinyseg and each of PyTorch's formats are from float64. Too far is an error of tinyseg."""
    tolerance = tolerance_of(case, precision)
    with cudnn(enabled=False):
        exact = torch_call(case, direction, inputs, dtype=torch.float64)()
    poison(exact)
    found = {"tinyseg": errors(our_results(case, direction, ours), exact)}
    if not found["tinyseg"] < tolerance:
        raise AssertionError(f"tinyseg is off by {found['tinyseg']:.2e} from float64, more than {tolerance:.0e}")
    return found | {name: errors(call(), exact) for name, call in theirs.items()}


def tolerance_of(case: Case, precision: str) -> float:
    return case.tolerances.get(precision, TOLERANCES[precision])


# ------------------------------------------------------------------------------------------------- precisions


@contextlib.contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Both libraries multiply with this precision, and cuDNN tries its algorithms and takes the fastest."""
    allowed = precision == TF32
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = allowed
    try:
        with cuda.allow_tf32(allowed), cudnn(allow_tf32=allowed, benchmark=True):
            yield
    finally:
        matmul.allow_tf32 = before


@contextlib.contextmanager
def cudnn(**flags: bool) -> Iterator[None]:
    """Set flags of torch.backends.cudnn. Without it (enabled=False) PyTorch has slow and plain kernels of its own,
    of which results in float64 are made."""
    before = {name: getattr(torch.backends.cudnn, name) for name in flags}
    _set_cudnn(flags)
    try:
        yield
    finally:
        _set_cudnn(before)


def _set_cudnn(flags: Mapping[str, bool]) -> None:
    for name, value in flags.items():
        setattr(torch.backends.cudnn, name, value)


def settings(precision: str) -> dict[str, Any]:
    """What is set while this precision is timed, read back."""
    with multiplying(precision):
        return {
            "torch.backends.cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "torch.backends.cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
            "tinyseg.cuda.tf32_is_allowed": cuda.tf32_is_allowed(),
        }


# ---------------------------------------------------------------------------------------------------- timing


class Stopwatch(Protocol):
    was_ahead: bool  # always until now: Python had queued all calls of a burst before the GPU began with the first

    def burst(self, calls: Sequence[Call]) -> list[float]:
        """Make the calls one after the other, and say how many milliseconds each one took."""
        ...


class CudaEvents:
    """A stopwatch of the GPU's time on the current stream, which must be that of both libraries."""

    LONGEST = 2**27  # cycles: a fifteenth of a second

    def __init__(self):
        self.cycles = 2**20
        self.was_ahead = True

    def burst(self, calls: Sequence[Call]) -> list[float]:
        while True:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
            torch.cuda._sleep(self.cycles)  # the queue fills meanwhile
            marks[0].record()
            for call, mark in zip(calls, marks[1:], strict=True):
                call()
                mark.record()
            is_ahead = not marks[0].query()
            torch.cuda.synchronize()
            if is_ahead or self.cycles >= self.LONGEST:
                break
            self.cycles *= 2
        self.was_ahead &= is_ahead
        return [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]


def alternate(
    stopwatch: Stopwatch, contenders: Mapping[str, Sequence[Call]], samples: int = SAMPLES
) -> dict[str, harness.Timing]:
    """Time contenders in turn. Each has a call for each set of buffers; they take turns, too."""
    for calls in contenders.values():
        for call in calls:
            call()  # compiles, searches, allocates; not counted
        stopwatch.burst(calls[:BURST])
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for start in range(0, samples, BURST):
        for name, calls in contenders.items():
            burst = [calls[index % len(calls)] for index in range(start, start + BURST)]
            times[name] += stopwatch.burst(burst)
    return {name: harness.timing(sample) for name, sample in times.items()}


# ------------------------------------------------------------------------------------------------------ the card


class Card(NamedTuple):
    """What the GPU does at best, as measured, and the size of its cache."""

    copy: float  # bytes/s, read and written
    float32: float  # operations/s of a matrix product
    tf32: float
    cache: int  # bytes

    def floor(self, direction: Pass, precision: str) -> tuple[float, str]:
        """The least time for a pass, in milliseconds, and what takes it."""
        rate = self.tf32 if precision == TF32 else max(self.float32, self.tf32 / 3)
        return max((1e3 * direction.bytes / self.copy, "bytes"), (1e3 * direction.flops / rate, "operations"))


def measure_card(stopwatch: Stopwatch, place: str = "cuda", side: int = 8192, megabytes: int = 2048) -> Card:
    """Copy between two halves of so many megabytes, and multiply two square matrices."""
    source = torch.randn(megabytes << 17, device=place)
    target = torch.empty_like(source)
    a, b = torch.randn(side, side, device=place), torch.randn(side, side, device=place)
    product = torch.empty_like(a)

    def rate(amount: float, call: Call) -> float:
        stopwatch.burst([call] * 3)
        return 1e3 * amount / statistics.median(stopwatch.burst([call] * 15))

    copy = rate(2 * source.nbytes, lambda: target.copy_(source))
    product_rates = {}
    for precision in (FLOAT32, TF32):
        with multiplying(precision):
            product_rates[precision] = rate(2 * side**3, lambda: torch.mm(a, b, out=product))
    cache = torch.cuda.get_device_properties(place).L2_cache_size if place == "cuda" else 0
    return Card(copy, product_rates[FLOAT32], product_rates[TF32], cache)


def gpu_is_alive() -> bool:
    """Whether it still works for this process. After a kernel has read outside of its memory, nothing does."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------- rows


def measure(
    case: Case, direction: Pass, precision: str, card: Card, stopwatch: Stopwatch, place: str = "cuda"
) -> dict[str, Any]:
    """The row of one pass. Raises AssertionError if tinyseg's result is wrong, and then nothing is timed."""
    sets = [Inputs.draw(case, place, seed=0)]
    count = max(3, min(32, -(-CACHES * card.cache // sets[0].bytes)))
    sets += [Inputs.draw(case, place, seed) for seed in range(1, count)]
    with multiplying(precision):
        ours = [our_call(case, direction, inputs) for inputs in sets]
        theirs = {
            name: [torch_call(case, direction, inputs, memory_format) for inputs in sets]
            for name, memory_format in FORMATS.items()
        }
        first = {name: calls[0] for name, calls in theirs.items()}
        error = check(case, direction, precision, sets[0], ours[0], first)
        right = {name: calls for name, calls in theirs.items() if error[name] < tolerance_of(case, precision)}
        timings = alternate(stopwatch, {"tinyseg": ours, **right})
    return identity(case, direction, precision) | {
        "errors": error,
        "buffer sets": count,
        "GPU kept busy": stopwatch.was_ahead,
        **compared(timings, card.floor(direction, precision), direction.goals.get(precision)),
    }


def identity(case: Case, direction: Pass, precision: str) -> dict[str, Any]:
    """What a row is about."""
    return {
        "group": case.group,
        "name": case.name,
        "pass": direction.name,
        "precision": precision,
        "x": case.x,
        "weights": case.weights,
        "bytes": direction.bytes,
        "operations": direction.flops,
    }


def compared(
    timings: Mapping[str, harness.Timing], floor: tuple[float, str] | None, goal: float | None
) -> dict[str, Any]:
    """Both contenders' times, the best of PyTorch's; shares of the floor; the ratio, and whether the goal is met.

    timings: that of "tinyseg", and those of PyTorch's variants.
    """
    timings = dict(timings)
    ours = timings.pop("tinyseg")
    if not timings:
        raise AssertionError("PyTorch is off by more than the tolerance in each of its memory formats")
    fastest = min(timings, key=lambda name: timings[name].median)
    ratio = timings[fastest].median / ours.median
    row: dict[str, Any] = {
        "tinyseg": asdict(ours),
        "torch": asdict(timings[fastest]) | {"memory format": fastest},
        "ratio": round(ratio, 3),
        "goal": goal,
        "met": None if goal is None else ratio >= goal,
    }
    if floor is not None:
        row["floor"] = {"median": round(floor[0], 4), "of": floor[1]}
        for who in ("tinyseg", "torch"):
            row[who]["share of floor"] = round(floor[0] / row[who]["median"], 3)
    return row
