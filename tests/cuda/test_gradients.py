"""Gradients of every operator's CUDA kernels, against differences of their forward passes in float64.

The checks are those of the CPU. They see NumPy arrays; what an operator keeps for its backward pass stays on the
device. They run each pass twice and ask for the same bits, too.
"""

from collections.abc import Callable

import numpy as np
import pytest
from operator_calls import CALLS, TAKES_A_LIST

from tinyseg import cuda, ops
from tinyseg.gradcheck import check_adjoint, check_vjp, spaced

OPERATORS = [name for name in ops.__all__ if not name.endswith("_backward")]

LINEAR = {  # in all their arrays together
    *("adaptive_avg_pool2d", "add", "avg_pool2d", "cast", "concat", "crop", "dropout", "gaussian_blur"),
    *("global_avg_pool2d", "max_unpool2d", "pad", "reshape", "resize", "slice", "spatial_gradient"),
}
BILINEAR = {"conv2d", "conv_transpose2d", "linear", "mul"}  # in their first two arrays, without a bias


class OnDevice:
    """An operator that takes and returns NumPy arrays, and runs on a device in between.

    place: how an array comes to the device, by default as it is
    """

    def __init__(self, name: str, device, place: Callable = cuda.to_device):
        self.device = device
        self.place = place
        self.takes_a_list = name in TAKES_A_LIST
        self.operator, self.operator_backward = getattr(ops, name), getattr(ops, f"{name}_backward")
        self.options = CALLS[name][1]

    def forward(self, *arrays):
        with cuda.on(self.device):
            placed = [self.place(array) for array in arrays]
            options = {
                name: self.place(option) if isinstance(option, np.ndarray) else option
                for name, option in self.options.items()
            }
            y, cache = self.operator(*([placed] if self.takes_a_list else placed), **options)
            return cuda.to_host(y), cache

    def backward(self, dy, cache):
        with cuda.on(self.device):
            gradients = self.operator_backward(self.place(dy), cache)
            if not isinstance(gradients, tuple):
                return cuda.to_host(gradients)
            return tuple(cuda.to_host(gradient) for gradient in gradients)


def turned(array: np.ndarray):
    """The array on the device, where its first axis is the one that is contiguous."""
    axes = tuple(reversed(range(array.ndim)))
    return cuda.to_device(np.array(array.transpose(axes), order="C")).transpose(*axes)


def inputs(name: str) -> list[np.ndarray]:
    return [spaced(shape, seed=seed) for seed, shape in enumerate(CALLS[name][0])]


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients(machine, name):
    operator = OnDevice(name, machine.devices[0])
    check_vjp(operator.forward, operator.backward, inputs(name))


@pytest.mark.parametrize("name", OPERATORS)
def test_arrays_that_are_not_contiguous(machine, name):
    def both(place):
        operator = OnDevice(name, machine.devices[0], place)
        y, cache = operator.forward(*inputs(name))
        gradients = operator.backward(spaced(y.shape, seed=9), cache)
        return y, *(gradients if isinstance(gradients, tuple) else (gradients,))

    for result, right in zip(both(turned), both(cuda.to_device), strict=True):
        assert (result is None) == (right is None)
        assert result is None or result.tobytes() == right.tobytes()


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_adjoints_of_linear_operators(machine, name):
    """All arrays in one vector."""
    operator, arrays = OnDevice(name, machine.devices[0]), inputs(name)
    ends = np.cumsum([array.size for array in arrays])[:-1]

    def forward(x):
        parts = np.split(x, ends)
        return operator.forward(*(part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)))

    x = np.concatenate([array.reshape(-1) for array in arrays])
    y, cache = forward(x)

    def adjoint(y):
        gradients = operator.backward(y, cache)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return np.concatenate([gradient.reshape(-1) for gradient in gradients])

    check_adjoint(lambda x: forward(x)[0], adjoint, x, machine.numbers(*y.shape))


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", sorted(BILINEAR))
def test_adjoints_of_bilinear_operators(machine, name, position):
    """In one of two arrays, while the other one stays."""
    operator, arrays = OnDevice(name, machine.devices[0]), inputs(name)[:2]

    def forward(x):
        return operator.forward(*(x if k == position else array for k, array in enumerate(arrays)))

    y, cache = forward(arrays[position])
    check_adjoint(
        lambda x: forward(x)[0],
        lambda y: operator.backward(y, cache)[position],
        arrays[position],
        machine.numbers(*y.shape),
    )
