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
from typing import Any

import numpy as np

from tinyseg.backend import Array
from tinyseg.optim.schedules import Schedule, constant
from tinyseg.tape import Tensor

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]
"""Tensors, or groups: {"params": tensors, "lr_multiplier": 1.0, "weight_decay": the optimiser's own}."""


class Optimiser:
    """Base class. A subclass names the arrays it keeps for each parameter in `keeps` and writes `_update`."""

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
        self.kept = {
            name: [np.zeros_like(tensor.data, order="C") for tensor in self.parameters] for name in self.keeps
        }

    def step(self) -> None:
        """Change every parameter that has a gradient, in place. The others are skipped."""
        if all(tensor.grad is None for tensor in self.parameters):
            raise RuntimeError(f"{self.name}.step: no parameter has a gradient; call loss.backward() first")
        lr = self.current_lr
        index = 0
        for group in self.groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._change(index, tensor, lr * group["lr_multiplier"], group["weight_decay"])
                index += 1
        self.steps += 1

    def zero_grad(self) -> None:
        """Forget all gradients: the next backward pass starts a new sum."""
        for tensor in self.parameters:
            tensor.grad = None

    @property
    def current_lr(self) -> float:
        """The learning rate of the next step, before the groups' multipliers."""
        return self.lr * self.schedule(self.steps)

    # ------------------------------------------------------------------------------------- one parameter's update

    def _change(self, index: int, tensor: Tensor, lr: float, weight_decay: float) -> None:
        gradient, kept = tensor.grad, [self.kept[name][index] for name in self.keeps]
        assert gradient is not None
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
        if not tensor.data.flags.c_contiguous:
            tensor.data = np.ascontiguousarray(tensor.data)  # the flat view below must be a view
        self.updates[index] += 1
        p, g, *kept = (np.ascontiguousarray(array).reshape(-1) for array in (tensor.data, gradient, *kept))
        self._update(p, g, kept, lr=lr, weight_decay=weight_decay, count=int(self.updates[index]))

    def _update(
        self, p: Array, g: Array, kept: list[Array], *, lr: float, weight_decay: float, count: int
    ) -> None:
        """Change parameter p and its kept arrays in place: flat arrays. `count` is 1 at the first update."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Array]:
        """Copies of everything that the steps so far have left behind: a flat dict of arrays.

        Kept arrays are named "velocity.0", "velocity.1", ... in the order of the parameters.
        """
        state = {"lr": np.array(self.lr), "steps": np.array(self.steps), "updates": self.updates.copy()}
        for name in self.keeps:
            state |= {f"{name}.{index}": array.copy() for index, array in enumerate(self.kept[name])}
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
                array[...] = state[f"{name}.{index}"]

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


def cast(dtype: np.dtype, *numbers: float) -> list[Any]:
    """The numbers in the type of the arrays, so that a kernel computes in that type."""
    return [dtype.type(number) for number in numbers]


def check_range(optimiser: str, low: float, high: float, **values: float) -> None:
    """low <= value < high, for each value."""
    for name, value in values.items():
        if not low <= value < high:
            raise ValueError(f"{optimiser}: {name} must be at least {low} and less than {high}, got {value}")
