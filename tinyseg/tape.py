"""Reverse-mode differentiation: remember which operators ran, then run their backward passes in reverse.

    x = Tensor(array, requires_grad=True)
    loss = functional.cross_entropy(net(x), labels)
    loss.backward()
    x.grad                                    # an array of the shape of x.data

A `Tensor` is an array with the operator that made it. `apply` runs a pair `op`, `op_backward` of tinyseg.ops and
remembers the cache; `Tensor.backward` visits the tensors in reverse topological order and hands each one's
gradient to the operator that made it. A cache is dropped as soon as its backward pass ran, so memory falls as
the pass proceeds, and a second backward pass through the same tensors is an error. There is no in-place
operator and no second derivative: no network of this package needs either.

Source: Griewank & Walther, "Evaluating Derivatives", 2nd ed., SIAM 2008, chapter 3.2 (reverse mode).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.ops import arithmetic

_recording: ContextVar[bool] = ContextVar("tinyseg_recording", default=True)


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside this block nothing is remembered: for evaluation, at the memory cost of the forward pass alone."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


def recording(*inputs: Any) -> bool:
    """Will the result of an operator with these inputs be remembered? If not, it may take a shorter way."""
    return _recording.get() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs)


class Tensor:
    """An array on the tape. `grad` is filled by `backward()`, for tensors made with `requires_grad=True`."""

    def __init__(self, data: Array, requires_grad: bool = False):
        self.data = data
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self.is_leaf = True  # made by a user, not by an operator
        self.parents: tuple[Tensor | None, ...] = ()  # the operator's array arguments; None for a plain array
        self.pullback: Callable[[Array], Sequence] | None = None  # dy -> one gradient per parent

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}(shape={self.shape}, dtype={self.data.dtype}, requires_grad={self.requires_grad})"

    def backward(self, dy: Array | None = None) -> None:
        """Add to `grad` of every leaf the gradient of <dy, self>. Without `dy`, self must be one number."""
        if not self.requires_grad:
            raise RuntimeError("backward: this tensor does not depend on any tensor with requires_grad=True")
        if dy is None:
            if self.data.size != 1:
                raise ValueError(
                    f"backward: a tensor of shape {self.shape} needs an upstream gradient dy of that shape; "
                    "without dy only a single number, for instance a loss, can be differentiated"
                )
            dy = cuda.constant_like(np.ones(self.shape), self.data)
        if dy.shape != self.shape:
            raise ValueError(f"backward: dy has shape {dy.shape}, the tensor has shape {self.shape}")

        gradients: dict[int, Array] = {id(self): dy}
        order = _topological_order(self)
        while order:
            tensor = order.pop()
            gradient = gradients.pop(id(tensor))
            if tensor.is_leaf:
                tensor.grad = gradient if tensor.grad is None else _sum(tensor.grad, gradient)
                continue
            if tensor.pullback is None:
                raise RuntimeError("backward: this part of the tape was already used; run the forward pass again")
            contributions = tensor.pullback(gradient)
            parents = tensor.parents
            tensor.pullback, tensor.parents = None, ()  # drops the cache, and what only the tape kept alive
            for parent, contribution in zip(parents, contributions, strict=True):
                if parent is not None and parent.requires_grad:
                    known = gradients.get(id(parent))
                    gradients[id(parent)] = contribution if known is None else _sum(known, contribution)


def _sum(a: Array, b: Array) -> Array:
    """A new array: either of the two may belong to others."""
    return arithmetic.add(a, b)[0] if cuda.on_gpu(a) else a + b


def apply(op: Callable, op_backward: Callable, *inputs: Tensor | Array | None, **options: Any) -> Tensor:
    """Run an operator of `tinyseg.ops` on the tape. `inputs` are its array arguments, `options` its keywords."""
    y, cache = op(*(_data(value) for value in inputs), **options)
    return record(y, cache, op_backward, inputs)


def record(y: Array, cache: Any, op_backward: Callable, inputs: Sequence[Tensor | Array | None]) -> Tensor:
    """Put a result on the tape: y came from `inputs`, and `op_backward(dy, cache)` gives their gradients."""
    parents = tuple(value if isinstance(value, Tensor) else None for value in inputs)
    need = tuple(parent is not None and parent.requires_grad for parent in parents)
    result = Tensor(y, requires_grad=_recording.get() and any(need))
    if result.requires_grad:
        result.is_leaf = False
        result.parents = parents
        if len(need) == 1:
            result.pullback = lambda dy: (op_backward(dy, cache),)
        else:
            result.pullback = lambda dy: op_backward(dy, cache, need=need)
    return result


def _data(value: Tensor | Array | None) -> Array | None:
    return value.data if isinstance(value, Tensor) else value


def _topological_order(root: Tensor) -> list[Tensor]:
    """Every tensor that root depends on and that needs a gradient, each after all of its parents."""
    order: list[Tensor] = []
    seen: set[int] = set()
    stack = [(root, False)]
    while stack:
        tensor, parents_done = stack.pop()
        if parents_done:
            order.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            stack.append((tensor, True))
            stack.extend(
                (parent, False) for parent in tensor.parents if parent is not None and parent.requires_grad
            )
    return order
