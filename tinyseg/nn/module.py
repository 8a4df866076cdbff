"""Modules: objects that own the parameters of a network and know how to apply them.

    class Block(nn.Module):
        def __init__(self, channels, *, rng):
            self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False, rng=rng)
            self.norm = nn.BatchNorm2d(channels)

        def forward(self, x):
            return functional.add(x, self.norm(self.conv(x)))

Nothing is registered and `super().__init__()` need not be called: a module's parts are the `Parameter`s,
`Buffer`s and `Module`s found among its attributes, in the order of assignment, also those in an attribute that is
a list, a tuple or a dict. Names are paths of attributes: "conv.weight", "blocks.0.norm.bias".
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.tape import Tensor


class Parameter(Tensor):
    """A tensor that is learned. With `requires_grad = False` it stays as it is, and costs no backward pass."""

    def __init__(self, data: Array, requires_grad: bool = True):
        super().__init__(data, requires_grad)


class Buffer:
    """An array that belongs to a module's state but is not learned, for instance a running mean.

    on_host  it stays on the CPU where the module moves to a GPU: a number that Python code reads
    """

    def __init__(self, data: Array, on_host: bool = False):
        self.data = data
        self.on_host = on_host

    def __repr__(self) -> str:
        return f"Buffer(shape={self.data.shape}, dtype={self.data.dtype})"


State = TypeVar("State", Parameter, Buffer)


class Module:
    """Base class of layers and networks. A subclass writes `__init__` and `forward`."""

    training: bool = True

    def forward(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.forward(*arguments, **options)

    # ---------------------------------------------------------------------------------------------- the parts

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules one level below."""
        for name, value in self._attributes():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module, named "", and all modules below it. A module reached by two paths comes once."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            name, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            children = list(module.named_children())
            stack.extend((f"{name}.{key}" if name else key, child) for key, child in reversed(children))

    def modules(self) -> Iterator["Module"]:
        for _, module in self.named_modules():
            yield module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters, in the order in which they were assigned. A shared parameter comes once."""
        return self._named(Parameter)

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        return self._named(Buffer)

    def parameters(self) -> Iterator[Parameter]:
        for _, parameter in self.named_parameters():
            yield parameter

    def num_parameters(self) -> int:
        """How many numbers the module learns: parameters with `requires_grad`, without the buffers."""
        return sum(parameter.data.size for parameter in self.parameters() if parameter.requires_grad)

    def _named(self, kind: type[State]) -> Iterator[tuple[str, State]]:
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in module._attributes():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        """All attributes; the items of a list, tuple or dict come one by one, named "attribute.key"."""
        for name, value in vars(self).items():
            if isinstance(value, dict):
                yield from ((f"{name}.{key}", item) for key, item in value.items())
            elif isinstance(value, list | tuple):
                yield from ((f"{name}.{index}", item) for index, item in enumerate(value))
            else:
                yield name, value

    # ---------------------------------------------------------------------------------------------- the state

    def _named_state(self) -> dict[str, Parameter | Buffer]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers by name, parameters first: NumPy arrays, wherever the module is."""
        return {name: np.array(cuda.to_host(value.data)) for name, value in self._named_state().items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set all parameters and buffers. Every name must be there, with its shape; the type is converted.

        When something does not fit, the error lists all of it, and the module stays as it was. To load a part
        only, as when a classifier's trunk starts a segmentation network, complete it first:
        `net.load_state_dict(net.state_dict() | part)`.
        """
        own = self._named_state()
        problems = [f"missing: {name} {value.data.shape}" for name, value in own.items() if name not in state]
        problems += [f"unexpected: {name} {np.shape(state[name])}" for name in state if name not in own]
        problems += [
            f"shape: {name} is {value.data.shape} here and {np.shape(state[name])} in the state"
            for name, value in own.items()
            if name in state and np.shape(state[name]) != value.data.shape
        ]
        if problems:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: the state belongs to another network, or to one with "
                f"other settings; {len(problems)} of its names do not fit:\n  " + "\n  ".join(problems)
            )
        for name, value in own.items():
            array = np.array(state[name], dtype=value.data.dtype, order="C")
            if cuda.on_gpu(value.data):  # in place: a CUDA graph that was recorded goes on with it
                cuda.write(value.data, array)
            else:
                value.data = array

    def astype(self, dtype: Any) -> "Module":
        """Convert floating-point parameters and buffers, for instance to float64 for a gradient check."""
        for value in self._named_state().values():
            if value.data.dtype.kind == "f":
                value.data = cuda.astype(value.data, dtype)
        for parameter in self.parameters():
            parameter.grad = None
        return self

    def to(self, device: str) -> "Module":
        """Move parameters and buffers to the "cpu", or to the GPU, "cuda". Optimisers are made afterwards."""
        if device not in ("cpu", "cuda"):
            raise ValueError(f"to: unknown device {device!r}; choose 'cpu' or 'cuda'")
        move = cuda.to_device if device == "cuda" else cuda.to_host
        for value in self._named_state().values():
            if cuda.on_gpu(value.data) != (device == "cuda") and not (isinstance(value, Buffer) and value.on_host):
                value.data = move(value.data)
        for parameter in self.parameters():
            parameter.grad = None
        return self

    @property
    def on_gpu(self) -> bool:
        """Whether the parameters are on a GPU."""
        return any(cuda.on_gpu(parameter.data) for parameter in self.parameters())

    # ----------------------------------------------------------------------------------------------- the mode

    def train(self, training: bool = True) -> "Module":
        """Switch this module, and all below it, to training: dropout drops, batch normalisation uses the batch."""
        for module in self.modules():
            module.training = training
        return self

    def eval(self) -> "Module":
        """Switch to evaluation: no dropout, and batch normalisation with its running statistics."""
        return self.train(False)

    # ------------------------------------------------------------------------------------------- how it prints

    def describe(self) -> str:
        """The settings that `repr` shows between the parentheses. Layers override it."""
        return ""

    def __repr__(self) -> str:
        parts = [self.describe()] if self.describe() else []
        lines = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.named_children()]
        if not lines:
            return f"{type(self).__name__}({', '.join(parts)})"
        return f"{type(self).__name__}({', '.join(parts)}\n  " + "\n  ".join(lines) + "\n)"


class Sequential(Module):
    """Modules applied one after the other. They are named "0", "1", ..., and can be indexed and iterated over."""

    def __init__(self, *modules: Module):
        for index, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(
                    f"Sequential: argument {index} must be a Module, got {type(module).__name__}; "
                    "write nn.ReLU() for functional.relu, and so on"
                )
            setattr(self, str(index), module)

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def __len__(self) -> int:
        return len(list(self.named_children()))

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
