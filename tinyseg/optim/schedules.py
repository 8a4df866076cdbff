"""Learning-rate schedules: functions from the step, counted from 0, to a factor for the learning rate.

    schedule = product(warm_up(500), poly(20_000))
    SGD(parameters, lr=0.01, schedule=schedule)

    constant()                   1
    poly(total, power)           (1 - step / total) ^ power
    step(every, gamma)           gamma ^ (number of drops so far)
    exponential(gamma, every)    gamma ^ (step / every)
    cosine(total, floor)         floor + (1 - floor) (1 + cos(pi step / total)) / 2
    warm_up(steps, start)        a straight line from start to 1, then 1
    product(a, b, ...)           a(step) b(step) ...

A schedule with a `total` stays at its last value after that step.

Sources: poly: Chen et al., "DeepLab", PAMI 2018, section 4.1; cosine: Loshchilov & Hutter, "SGDR", ICLR 2017,
eq. 5 without restarts; warm_up: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2.
"""

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def constant() -> Schedule:
    return lambda step: 1.0


def poly(total: int, power: float = 0.9) -> Schedule:
    """From 1 at step 0 to 0 at step `total`."""
    _positive("poly", total=total, power=power)
    return lambda step: (1.0 - min(step, total) / total) ** power


def step(every: int | Sequence[int], gamma: float = 0.1) -> Schedule:
    """Multiplied by `gamma` after every so many steps; or, given a list, at each of these steps.

    >>> [step([2, 3])(n) for n in range(4)]
    [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    _positive("step", gamma=gamma)
    if isinstance(every, int):
        _positive("step", every=every)
        return lambda step: gamma ** (step // every)
    drops = sorted(every)
    return lambda step: gamma ** sum(drop <= step for drop in drops)


def exponential(gamma: float, every: int = 1) -> Schedule:
    """Multiplied by `gamma` over each `every` steps, evenly."""
    _positive("exponential", gamma=gamma, every=every)
    return lambda step: gamma ** (step / every)


def cosine(total: int, floor: float = 0.0) -> Schedule:
    """Half a cosine wave, from 1 at step 0 to `floor` at step `total`."""
    _positive("cosine", total=total)
    return lambda step: floor + (1 - floor) * (1 + math.cos(math.pi * min(step, total) / total)) / 2


def warm_up(steps: int, start: float = 0.0) -> Schedule:
    """Rises in `steps` equal parts from `start` to 1: step 0 takes the first part, step `steps - 1` reaches 1."""
    _positive("warm_up", steps=steps)
    return lambda step: start + (1 - start) * min(step + 1, steps) / steps


def product(*schedules: Schedule) -> Schedule:
    """All of them at once, multiplied."""
    return lambda step: math.prod(schedule(step) for schedule in schedules)


def _positive(schedule: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"schedules.{schedule}: {name} must be more than 0, got {value}")
