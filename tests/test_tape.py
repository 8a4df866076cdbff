"""The tape: sums at fan-outs, long chains, what is remembered and for how long."""

import gc
import weakref
from typing import NamedTuple

import numpy as np
import pytest

from tinyseg import functional as F
from tinyseg.gradcheck import check_vjp
from tinyseg.tape import Tensor, apply, no_grad, record


class Cache(NamedTuple):
    x: np.ndarray


def square(x):
    return x * x, Cache(x)


def square_backward(dy, cache):
    return 2 * cache.x * dy


def leaf(*numbers):
    return Tensor(np.array(numbers, dtype=np.float64), requires_grad=True)


# ---------------------------------------------------------------------------------------------------- gradients


def test_by_hand():
    x = leaf(3.0, -2.0)
    y = apply(square, square_backward, x)
    np.testing.assert_array_equal(y.data, [9, 4])
    y.backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad, [6, -40])


def test_a_tensor_used_several_times_sums_its_gradients():
    x = leaf(3.0)
    y = F.add(F.mul(x, x), F.mul(x, x.data))  # x^2 + 3 x, where the 3 is a constant
    y.backward()
    np.testing.assert_array_equal(x.grad, [2 * 3 + 3])


def test_the_same_tensor_twice_in_one_operator():
    x = leaf(3.0)
    F.concat([x, x, x]).backward(np.array([1.0, 10.0, 100.0]))
    np.testing.assert_array_equal(x.grad, [111])


def test_diamonds_in_a_row_are_walked_once_each():
    """Two ways through each of 60 diamonds: 2^60 paths, but 180 operators."""
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = F.mul(F.add(y, y), 0.5)
    y.backward()
    np.testing.assert_array_equal(x.grad, [1])


def test_a_short_and_a_long_way_to_the_same_tensor():
    """The gradient of the fork must not be passed on before the long way has arrived."""
    x = leaf(2.0)
    fork = F.mul(x, 3.0)
    long = fork
    for _ in range(5):
        long = F.mul(long, 2.0)
    F.add(fork, long).backward()
    np.testing.assert_array_equal(x.grad, [3 * (1 + 32)])


def test_a_random_graph_against_finite_differences(rng):
    """Each node adds or multiplies two earlier ones; the gradient is that of all leaves at once."""
    plan = [(rng.integers(0, 3 + k), rng.integers(0, 3 + k), rng.random() < 0.5) for k in range(12)]

    def graph(arrays):
        leaves = [Tensor(array, requires_grad=True) for array in arrays]
        nodes = list(leaves)
        for i, j, multiplies in plan:
            nodes.append(F.tanh(F.mul(nodes[i], nodes[j])) if multiplies else F.add(nodes[i], nodes[j]))
        return leaves, F.concat(nodes)

    def forward(*arrays):
        return graph(arrays)[1].data, arrays

    def backward(dy, arrays):
        leaves, y = graph(arrays)
        y.backward(dy)
        return tuple(tensor.grad for tensor in leaves)

    check_vjp(forward, backward, tuple(rng.uniform(0.5, 1, 4) for _ in range(3)))


def test_twenty_thousand_operators_in_a_row():
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = F.add(y, 1.0)
    y.backward()
    np.testing.assert_array_equal(x.grad, [1])
    del y  # the chain is also taken down without recursion
    gc.collect()


def test_twenty_thousand_operators_are_dropped_without_a_backward_pass():
    y = leaf(1.0)
    for _ in range(20_000):
        y = F.add(y, 1.0)
    del y
    gc.collect()


def test_gradients_that_are_shared_are_not_changed():
    """Both gradients of a sum are dy itself: adding to one in place would change the other."""
    a, b = leaf(1.0, 1.0), leaf(2.0, 2.0)
    dy = np.array([5.0, 7.0])
    total = F.add(a, b)
    F.add(total, a).backward(dy)
    F.add(a, b).backward(dy)
    np.testing.assert_array_equal(a.grad, [15, 21])
    np.testing.assert_array_equal(b.grad, [10, 14])
    np.testing.assert_array_equal(dy, [5, 7])


# -------------------------------------------------------------------------------------- leaves, constants, no_grad


def test_backward_passes_add_up_in_a_leaf():
    x = leaf(3.0)
    for _ in range(3):
        apply(square, square_backward, x).backward()
    np.testing.assert_array_equal(x.grad, [18])
    x.grad = None
    apply(square, square_backward, x).backward()
    np.testing.assert_array_equal(x.grad, [6])


def test_only_leaves_that_ask_for_it_get_a_gradient():
    x, constant = leaf(3.0), Tensor(np.array([2.0]))
    middle = F.mul(x, constant)
    F.mul(middle, 5.0).backward()
    np.testing.assert_array_equal(x.grad, [10])
    assert constant.grad is None
    assert middle.grad is None


def test_a_leaf_is_its_own_gradient():
    x = leaf(3.0)
    x.backward()
    np.testing.assert_array_equal(x.grad, [1])


def test_gradients_nobody_needs_are_not_computed():
    needs = []

    def product_backward(dy, cache, need):
        needs.append(need)
        return tuple(dy if wanted else None for wanted in need)

    x = leaf(3.0)
    record(np.array([6.0]), None, product_backward, [np.array([2.0]), x, None, Tensor(x.data)]).backward()
    assert needs == [(False, True, False, False)]


def test_no_grad_remembers_nothing():
    x = leaf(3.0)
    cache_alive = []

    def remembering_square(x):
        cache = Held()
        cache_alive.append(weakref.ref(cache))
        return x * x, cache

    with no_grad():
        y = apply(remembering_square, square_backward, x)
    assert not y.requires_grad
    assert y.pullback is None
    assert y.parents == ()
    assert cache_alive[0]() is None
    assert apply(square, square_backward, x).requires_grad  # outside again


def test_no_grad_ends_with_an_error_too():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert apply(square, square_backward, leaf(1.0)).requires_grad


# ------------------------------------------------------------------------------------------------------- memory


class Held:
    """A cache that can be watched."""


def test_caches_are_dropped_as_the_pass_proceeds():
    alive = []
    seen = []

    def op(x):
        cache = Held()
        alive.append(weakref.ref(cache))
        return x + 1, cache

    def op_backward(dy, cache):
        del cache
        seen.append([reference() is not None for reference in alive])
        return dy

    x = leaf(0.0)
    y = x
    for _ in range(4):
        y = apply(op, op_backward, y)
    assert all(reference() is not None for reference in alive)
    y.backward()
    # While the k-th operator from the end runs its pass, the caches of those behind it are gone.
    assert seen == [[True] * 4, [True] * 3 + [False], [True, True, False, False], [True, False, False, False]]
    assert all(reference() is None for reference in alive)


def test_results_in_between_are_dropped_too():
    x = leaf(1.0)
    middle = F.mul(x, 2.0)
    watched = weakref.ref(middle)
    y = F.mul(middle, 3.0)
    del middle
    assert watched() is not None
    y.backward()
    assert watched() is None


def test_a_second_backward_pass_is_an_error():
    x = leaf(3.0)
    middle = F.mul(x, 2.0)
    y, z = F.mul(middle, 5.0), F.mul(middle, 7.0)
    y.backward()
    with pytest.raises(RuntimeError, match="already used; run the forward pass again"):
        y.backward()
    with pytest.raises(RuntimeError, match="already used"):
        z.backward()
    np.testing.assert_array_equal(x.grad, [10])


# ------------------------------------------------------------------------------------------------------- errors


def test_errors():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"tensor of shape \(2,\) needs an upstream gradient dy"):
        x.backward()
    with pytest.raises(ValueError, match=r"dy has shape \(3,\), the tensor has shape \(2,\)"):
        x.backward(np.zeros(3))
    with pytest.raises(RuntimeError, match="does not depend on any tensor with requires_grad=True"):
        Tensor(np.array(1.0)).backward()


def test_a_backward_pass_with_too_few_gradients_is_noticed():
    y = record(np.array([1.0]), None, lambda dy, cache, need: (dy,), [leaf(1.0), leaf(2.0)])
    with pytest.raises(ValueError, match="zip"):
        y.backward()


def test_repr_tells_shape_and_type():
    assert repr(leaf(1.0, 2.0)) == "Tensor(shape=(2,), dtype=float64, requires_grad=True)"
