"""Operators on the tape: each function lifts one pair of `tinyseg.ops` from arrays to tensors.

The arguments, shapes and errors are those of the operator of the same name; here inputs may be tensors or
arrays, and the result is a tensor that can be differentiated.
"""

from typing import Any

from tinyseg import ops
from tinyseg.backend import Array
from tinyseg.tape import Tensor, apply

Input = Tensor | Array
"""What an array argument may be."""


def relu(x: Input) -> Tensor:
    return apply(ops.relu, ops.relu_backward, x)


def leaky_relu(x: Input, **options: Any) -> Tensor:
    return apply(ops.leaky_relu, ops.leaky_relu_backward, x, **options)
