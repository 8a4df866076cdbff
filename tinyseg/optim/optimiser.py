"""What all optimisers share: parameter groups, the learning rate of each step, state to save and restore.

    optimiser = optim.SGD(
        [{"params": body}, {"params": head, "lr_multiplier": 10}],
        lr=0.01, momentum=0.9, weight_decay=5e-4, schedule=optim.schedules.poly(20_000),
    )
    for batch in batches:
        optimiser.zero_grad()
        loss(batch).backward()          # several of these before a step add their gradients up
        optimiser.step()

The learning rate of a parameter is  lr * schedule(step) * lr_multiplier. `step` counts from 0 and is part of the
state, so a resumed run goes on where the schedule was.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.optim.rows import Rows, rows
from tinyseg.optim.schedules import Schedule, constant
from tinyseg.tape import Tensor

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]
"""Tensors, or groups: {"params": tensors, "lr_multiplier": 1.0, "weight_decay": the optimiser's own}."""


class Due(NamedTuple):
    """A parameter that the step under way changes, and the numbers of the formula."""

    index: int
    numbers: tuple[float, ...]


class Optimiser:
    """Base class. A subclass names the arrays it keeps for each parameter in `keeps`, and writes its formula:
    `_numbers`, `_update` for one parameter on the CPU, and `_update_rows` for all of them on a GPU.

    A step has two parts, which `step` does one after the other: `advance` counts it and works out its learning
    rates on the host, `apply` changes the parameters. A CUDA graph records `apply` alone; the numbers that
    `advance` leaves on the GPU are then those of the next launch.
    """

    keeps: tuple[str, ...] = ()

    def __init__(self, parameters: Parameters, *, lr: float, weight_decay: float, schedule: Schedule | None):
        self.name = type(self).__name__
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"{self.name}: lr must be more than 0, got {lr}")
        self.lr = lr
        self.schedule = schedule or constant()
        self.steps = 0
        self.groups = self._groups(parameters, weight_decay)
        self.parameters: list[Tensor] = [tensor for group in self.groups for tensor in group["params"]]
        self.updates = np.zeros(len(self.parameters), np.int64)  # how often each parameter was changed
        self.kept = {name: [_zeros_like(tensor.data) for tensor in self.parameters] for name in self.keeps}
        self._due: list[Due] = []
        self._due_numbers: Array | None = None  # the same on the GPU, a row for each; then rows that nobody reads

    def step(self) -> None:
        """Change every parameter that has a gradient, in place. The others are skipped."""
        self.advance()
        self.apply()

    def advance(self) -> None:
        """Count a step, and work out the numbers with which `apply` changes the parameters with a gradient."""
        if all(tensor.grad is None for tensor in self.parameters):
            raise RuntimeError(f"{self.name}.step: no parameter has a gradient; call loss.backward() first")
        lr, due = self.current_lr, []
        groups = [group for group in self.groups for _ in group["params"]]
        for index, (tensor, group) in enumerate(zip(self.parameters, groups, strict=True)):
            if tensor.grad is not None:
                self._check(index, tensor)
                rate, count = lr * group["lr_multiplier"], int(self.updates[index]) + 1
                due.append(Due(index, self._numbers(rate, group["weight_decay"], count)))
        self._due = due
        self.updates[[index for index, _ in due]] += 1
        self.steps += 1
        if self._on_gpu():
            self._send_numbers()

    def apply(self) -> None:
        """Change the parameters that were found by the last `advance`, by their gradients of now."""
        if self._on_gpu():
            table = rows([self._arrays(due.index) for due in self._due])
            self._update_rows(table, self._due_numbers)
            return
        for due in self._due:
            arrays = [np.ascontiguousarray(array).reshape(-1) for array in self._arrays(due.index)]
            self._update(*arrays, *map(arrays[0].dtype.type, due.numbers))

    def zero_grad(self) -> None:
        """Forget all gradients: the next backward pass starts a new sum."""
        for tensor in self.parameters:
            tensor.grad = None

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step, before the groups' multipliers."""
        return self.lr * self.schedule(self.steps)

    # ------------------------------------------------------------------------------ the formula, and its arrays

    def _numbers(self, lr: float, weight_decay: float, count: int) -> tuple[float, ...]:
        """The numbers of the formula, for a parameter that is changed for the `count`-th time, from 1."""
        raise NotImplementedError

    def _update(self, *arrays_and_numbers: Any) -> None:
        """Change a parameter in place: given are it, its gradient and its kept arrays, flat, then the numbers."""
        raise NotImplementedError

    def _update_rows(self, rows: Rows, numbers: Array | None) -> None:
        """The same for many parameters on a GPU. Their arrays are in `rows`, `numbers` has a row for each."""
        raise NotImplementedError

    def _arrays(self, index: int) -> list[Array]:
        tensor = self.parameters[index]
        assert tensor.grad is not None
        return [tensor.data, tensor.grad, *(self.kept[name][index] for name in self.keeps)]

    def _on_gpu(self) -> bool:
        return cuda.on_gpu(self.parameters[0].data)

    def _send_numbers(self) -> None:
        """Always to the same place, where a recorded `apply` reads them."""
        shape = (len(self.parameters), len(self._due[0].numbers))
        numbers = np.zeros(shape, self.parameters[0].data.dtype)
        numbers[: len(self._due)] = [due.numbers for due in self._due]
        if self._due_numbers is None:
            self._due_numbers = cuda.to_device(numbers)
        else:
            cuda.write(self._due_numbers, numbers)

    def _check(self, index: int, tensor: Tensor) -> None:
        """Raises an error if the parameter, its gradient and its kept arrays do not go together."""
        gradient, *kept = self._arrays(index)[1:]
        if gradient.shape != tensor.shape or any(array.shape != tensor.shape for array in kept):
            raise ValueError(
                f"{self.name}.step: parameter {index} has shape {tensor.shape}, its gradient {gradient.shape}; "
                "make a new optimiser when a parameter changes its shape"
            )
        if any(array.dtype != tensor.data.dtype for array in [gradient, *kept]):
            raise TypeError(
                f"{self.name}.step: parameter {index} is {tensor.data.dtype}, its gradient {gradient.dtype}; "
                "convert the network with astype before the optimiser is made"
            )
        if any(cuda.on_gpu(array) != self._on_gpu() for array in [tensor.data, gradient, *kept]):
            raise TypeError(
                f"{self.name}.step: parameter {index} is partly on the CPU and partly on a GPU; move the network "
                "with to(device) before the optimiser is made"
            )
        if not tensor.data.flags.c_contiguous:
            tensor.data = cuda.copied(tensor.data)  # it is changed in place through a flat view

    # --------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Array]:
        """Copies of everything that the steps so far have left behind: a flat dict of NumPy arrays.

        Kept arrays are named "velocity.0", "velocity.1", ... in the order of the parameters.
        """
        state = {"lr": np.array(self.lr), "steps": np.array(self.steps), "updates": self.updates.copy()}
        for name in self.keeps:
            for index, array in enumerate(self.kept[name]):
                state[f"{name}.{index}"] = np.array(cuda.to_host(array))
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on exactly where the optimiser that gave this state stopped. If it does not fit, nothing changes."""
        own = self.state_dict()
        problems = [f"missing: {name} {own[name].shape}" for name in own if name not in state]
        problems += [f"unexpected: {name} {np.shape(state[name])}" for name in state if name not in own]
        problems += [
            f"shape: {name} is {own[name].shape} here and {np.shape(state[name])} in the state"
            for name in own
            if name in state and np.shape(state[name]) != own[name].shape
        ]
        if problems:
            raise ValueError(
                f"{self.name}.load_state_dict: the state belongs to another optimiser or another network; "
                f"{len(problems)} of its names do not fit:\n  " + "\n  ".join(problems)
            )
        self.lr, self.steps = float(state["lr"]), int(state["steps"])
        self.updates = np.array(state["updates"], np.int64)
        for name in self.keeps:
            for index, array in enumerate(self.kept[name]):
                cuda.write(array, np.asarray(state[f"{name}.{index}"]))

    # --------------------------------------------------------------------------------------------------- groups

    def _groups(self, parameters: Parameters, weight_decay: float) -> list[dict[str, Any]]:
        if isinstance(parameters, Tensor | Mapping):
            raise TypeError(f"{self.name}: parameters must be a list of tensors or of groups, not a single one")
        items = list(parameters)
        if items and not isinstance(items[0], Mapping):
            items = [{"params": items}]
        groups = []
        for item in items:
            if not isinstance(item, Mapping):
                raise TypeError(f"{self.name}: groups and single tensors cannot be mixed; make every item a group")
            group = {"lr_multiplier": 1.0, "weight_decay": weight_decay, **item}
            unknown = sorted(set(group) - {"params", "lr_multiplier", "weight_decay"})
            if unknown or "params" not in group:
                raise ValueError(
                    f"{self.name}: a group has the keys params, lr_multiplier and weight_decay, got {sorted(item)}"
                )
            if not (group["lr_multiplier"] >= 0 and group["weight_decay"] >= 0):
                raise ValueError(
                    f"{self.name}: lr_multiplier and weight_decay must be 0 or more, "
                    f"got {group['lr_multiplier']} and {group['weight_decay']}"
                )
            group["params"] = list(group["params"])
            groups.append(group)
        self._check_tensors([tensor for group in groups for tensor in group["params"]])
        return groups

    def _check_tensors(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            raise ValueError(
                f"{self.name}: there are no parameters to optimise; if they come from a generator such as "
                "net.parameters(), it can be used once only"
            )
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{self.name}: parameters must be tensors, got {type(tensor).__name__}")
        if len({id(tensor) for tensor in tensors}) < len(tensors):
            raise ValueError(f"{self.name}: a parameter is listed twice; each belongs to one group only")


def _zeros_like(array: Array) -> Array:
    return cuda.place_like(np.zeros(array.shape, array.dtype), array)


def check_range(optimiser: str, low: float, high: float, **values: float) -> None:
    """low <= value < high, for each value."""
    for name, value in values.items():
        if not low <= value < high:
            raise ValueError(f"{optimiser}: {name} must be at least {low} and less than {high}, got {value}")
