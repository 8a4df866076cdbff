"""Every operator has its twin on the tape, which gives the operator's own result and gradients."""

from functools import partial

import numpy as np
import pytest
from operator_calls import CALLS, IMAGE, LABELS, TAKES_A_LIST

from tinyseg import functional as F
from tinyseg import ops
from tinyseg.gradcheck import check_vjp
from tinyseg.tape import Tensor


def test_every_operator_is_here():
    operators = {name for name in ops.__all__ if not name.endswith("_backward")}
    assert operators == set(CALLS)
    assert {f"{name}_backward" for name in operators} == set(ops.__all__) - operators


@pytest.mark.parametrize("name", CALLS)
def test_lifts_its_operator(rng, name):
    shapes, options = CALLS[name]
    draw = rng.random if name == "dice" else rng.standard_normal  # dice takes probabilities
    arrays = [draw(shape) for shape in shapes]
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    listed = name in TAKES_A_LIST
    expected, cache = getattr(ops, name)(*([arrays] if listed else arrays), **options)
    y = getattr(F, name)(*([tensors] if listed else tensors), **options)
    if name == "batch_norm":
        y, mean, var = y
        np.testing.assert_array_equal(mean, cache.mean)
        np.testing.assert_array_equal(var, cache.var)

    np.testing.assert_array_equal(y.data, expected)
    dy = np.asarray(rng.standard_normal(y.shape))
    y.backward(dy)
    gradients = getattr(ops, f"{name}_backward")(dy, cache)
    gradients = gradients if len(arrays) > 1 else [gradients]
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_array_equal(tensor.grad, gradient)


@pytest.mark.parametrize("name", [name for name, (shapes, _) in CALLS.items() if len(shapes) > 1])
def test_plain_arrays_are_constants(rng, name):
    """Each argument in turn is the only tensor."""
    shapes, options = CALLS[name]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    listed = name in TAKES_A_LIST
    for k in range(len(arrays)):
        mixed = [Tensor(array, requires_grad=True) if i == k else array for i, array in enumerate(arrays)]
        y = getattr(F, name)(*([mixed] if listed else mixed), **options)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(np.ones_like(y.data))
        assert mixed[k].grad.shape == shapes[k]


def test_absent_biases(rng):
    x, w = Tensor(rng.standard_normal(IMAGE), requires_grad=True), rng.standard_normal((1, 1, 3, 3))
    for y in (F.conv2d(x, w), F.conv_transpose2d(x, w), F.linear(x, w[0, 0])):
        x.grad = None
        y.backward(np.ones_like(y.data))
        assert x.grad.shape == IMAGE


def test_numbers_take_the_type_of_the_tensor():
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    y = F.add(F.mul(x, 0.5), 3)
    assert y.data.dtype == np.float32
    np.testing.assert_array_equal(y.data, np.array([3.5, 4], np.float32))
    y.backward(np.ones(2, np.float32))
    np.testing.assert_array_equal(x.grad, np.array([0.5, 0.5], np.float32))


def test_joining_one_tensor():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    assert F.concat([x]) is x
    np.testing.assert_array_equal(F.concat([x.data]).data, x.data)


def test_unpooling_puts_maxima_back(rng):
    x = rng.standard_normal(IMAGE)
    y, index = F.max_pool2d_with_index(x, 2)
    back = F.max_unpool2d(y, index, 2).data
    np.testing.assert_array_equal(back[back != 0], x[back != 0])
    assert np.count_nonzero(back) == y.data.size


def test_errors_are_those_of_the_operator():
    with pytest.raises(ValueError, match="leaky_relu: slope must be more than 0"):
        F.leaky_relu(np.zeros(3), slope=0)
    with pytest.raises(ValueError, match=r"mul: a of shape \(2,\) and b of shape \(3,\) do not fit"):
        F.mul(Tensor(np.zeros(2)), np.zeros(3))


# ------------------------------------------------------------------------------------------------ composed of them


def gated_block(x, w, b, gate, *, labels):
    """A residual block with a gate, down and up again, and a loss on two scales."""
    y = F.tanh(F.conv2d(x, w, b, padding=1))
    y = F.add(x, F.mul(F.sigmoid(gate), y))
    small = F.avg_pool2d(y, 2)
    logits = F.concat([F.resize(small, y.shape[1:3]), F.slice(y, {-1: (0, 2)})])
    loss = F.cross_entropy(logits, labels)
    auxiliary = F.cross_entropy(small, labels[:, ::2, ::2])
    return F.add(loss, F.mul(auxiliary, 0.4))


def on_the_tape(function, *arrays):
    """The function as an operator of arrays, and a backward pass that runs the tape."""
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    return function(*tensors), tensors


def test_gradients_of_a_composition(rng):
    function = partial(gated_block, labels=LABELS)

    def forward(*arrays):
        y, tensors = on_the_tape(function, *arrays)
        return y.data, tuple(tensor.data for tensor in tensors)

    def backward(dy, arrays):
        y, tensors = on_the_tape(function, *arrays)
        y.backward(dy)
        return tuple(tensor.grad for tensor in tensors)

    inputs = (rng.standard_normal(IMAGE), rng.standard_normal((3, 3, 3, 3)), rng.standard_normal(3))
    check_vjp(forward, backward, (*inputs, rng.standard_normal((2, 4, 6, 1))))
