"""The gradient checks themselves: right gradients pass for every seed, and each way of being wrong is named."""

import doctest

import numpy as np
import pytest

from tinyseg import gradcheck
from tinyseg.gradcheck import GradientError, check_adjoint, check_vjp, check_vjp_full, spaced

CHECKS = pytest.mark.parametrize("check", [check_vjp, check_vjp_full])


# ---------------------------------------------------------------------------------- operators with right gradients


def linear(x, w, b):
    return x @ w + b, (x, w)


def linear_backward(dy, cache):
    x, w = cache
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


def square(x):
    return x * x, x


def square_backward(dy, x):
    return 2 * x * dy


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)
    return y, y


def softmax_backward(dy, y):
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def normalise(x):
    """Mean 0 and variance 1 along axis 0."""
    deviation = np.sqrt(x.var(axis=0) + 1e-5)
    y = (x - x.mean(axis=0)) / deviation
    return y, (y, deviation)


def normalise_backward(dy, cache):
    y, deviation = cache
    return (dy - dy.mean(axis=0) - y * (dy * y).mean(axis=0)) / deviation


def mean_square(x):
    return np.mean(x**2), x


def mean_square_backward(dy, x):
    return dy * 2 * x / x.size


def cross_entropy(x, labels):
    y, _ = softmax(x)
    return -np.mean(np.log(y[np.arange(len(x)), labels])), (y, labels)


def cross_entropy_backward(dy, cache):
    y, labels = cache
    dx = y.copy()
    dx[np.arange(len(y)), labels] -= 1
    return dy * dx / len(y)


def relu(x):
    return np.maximum(x, 0), x


def relu_backward(dy, x):
    return np.where(x > 0, dy, 0)


def linear_inputs(rng):
    return rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)


PAIRS = {
    "linear": (linear, linear_backward, linear_inputs),
    "square": (square, square_backward, lambda rng: rng.normal(size=(3, 1, 4))),
    "softmax": (softmax, softmax_backward, lambda rng: 3 * rng.normal(size=(4, 5))),
    "normalise": (normalise, normalise_backward, lambda rng: 100 + rng.normal(size=(6, 3))),
    "mean_square": (mean_square, mean_square_backward, lambda rng: rng.normal(size=(7, 9))),
    "cross_entropy": (
        cross_entropy,
        cross_entropy_backward,
        lambda rng: (rng.normal(size=(6, 4)), rng.integers(0, 4, 6)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_right_gradients_pass_for_a_thousand_seeds(name):
    op, op_backward, draw = PAIRS[name]
    for seed in range(1000):
        check_vjp(op, op_backward, draw(np.random.default_rng(10_000 + seed)), seed=seed)


@pytest.mark.parametrize("name", PAIRS)
def test_right_gradients_pass_the_full_check(name):
    op, op_backward, draw = PAIRS[name]
    for seed in range(20):
        check_vjp_full(op, op_backward, draw(np.random.default_rng(10_000 + seed)), seed=seed)


@pytest.mark.parametrize("factor", [1.0001, 0.9999, 1.00001])
@pytest.mark.parametrize("name", PAIRS)
def test_slightly_wrong_gradients_fail_for_nearly_every_seed(name, factor):
    op, op_backward, draw = PAIRS[name]

    def scaled_backward(dy, cache):
        gradients = op_backward(dy, cache)
        return tuple(factor * g for g in gradients) if isinstance(gradients, tuple) else factor * gradients

    caught = 0
    for seed in range(50):
        try:
            check_vjp(op, scaled_backward, draw(np.random.default_rng(seed)), seed=seed)
        except GradientError:
            caught += 1
    # The numbers compared are random, and now and then small enough for a small error to be below the tolerance.
    assert caught >= (45 if factor != 1.00001 else 35)


def test_one_wrong_element_among_ten_thousand_is_found():
    x = np.random.default_rng(0).normal(size=(100, 100))

    def backward(dy, x):
        dx = 2 * x * dy
        dx[61, 7] *= 1.2
        return dx

    for seed in range(50):
        with pytest.raises(GradientError, match="dx is wrong"):
            check_vjp(square, backward, x, seed=seed)


# ----------------------------------------------------------------------------------- inputs that are hard to judge


def test_a_mean_over_many_elements():
    x = np.random.default_rng(1).normal(size=(200, 100))
    for seed in range(20):
        check_vjp(mean_square, mean_square_backward, x, seed=seed)
    with pytest.raises(GradientError):
        check_vjp(mean_square, lambda dy, x: dy * x / x.size, x)


def test_inputs_as_large_as_pixel_values(rng):
    x, w, b = rng.uniform(0, 255, size=(50, 40)), rng.normal(size=(40, 3)), rng.normal(size=3)
    for seed in range(20):
        check_vjp(linear, linear_backward, (x, w, b), seed=seed)


def test_a_gradient_that_is_zero(rng):
    """A bias before a normalisation has no effect: both sides are nothing but rounding."""

    def shifted(x, b):
        return normalise(x + b)

    def shifted_backward(dy, cache):
        dx = normalise_backward(dy, cache)
        return dx, dx.sum(axis=0)

    for seed in range(100):
        check_vjp(shifted, shifted_backward, (rng.normal(size=(6, 3)), rng.normal(size=3)), seed=seed)
    check_vjp_full(shifted, shifted_backward, (rng.normal(size=(6, 3)), rng.normal(size=3)))


def test_a_result_that_does_not_change_at_all():
    check_vjp(relu, relu_backward, np.array([-1.0, -2.0, -3.0]))
    with pytest.raises(GradientError, match="3 of 3 elements are wrong"):
        check_vjp(relu, lambda dy, x: dy, np.array([-1.0, -2.0, -3.0]))


def test_a_gradient_that_exists_where_the_right_one_is_zero(rng):
    with pytest.raises(GradientError, match="dx is wrong"):
        check_vjp(lambda x: (np.zeros(3), None), lambda dy, _: 1e-3 * np.ones(4), rng.normal(size=4))


def test_inputs_of_any_kind_of_memory(rng):
    x = rng.normal(size=(6, 8)).T[::2]  # not contiguous
    check_vjp(softmax, softmax_backward, x)
    check_vjp(square, square_backward, np.asarray(3.0))  # a single number
    check_vjp_full(square, square_backward, np.asarray(3.0))
    x.flags.writeable = False
    check_vjp_full(softmax, softmax_backward, x)


def test_none_and_integers_are_not_differentiated(rng):
    def op(x, bias, labels):
        return x[labels] if bias is None else x[labels] + bias, (x.shape, labels)

    def backward(dy, cache, whole=False):
        dx = np.zeros(cache[0])
        np.add.at(dx, cache[1], dy)
        return (dx, None, None) if whole else dx

    inputs = (rng.normal(size=5), None, np.array([1, 1, 4]))
    check_vjp(op, backward, inputs)
    check_vjp(op, lambda dy, cache: backward(dy, cache, whole=True), inputs)
    check_vjp_full(op, backward, inputs)


def test_options_reach_the_operator(rng):
    def power(x, *, exponent):
        return x**exponent, (x, exponent)

    def power_backward(dy, cache):
        x, exponent = cache
        return dy * exponent * x ** (exponent - 1)

    check_vjp(power, power_backward, rng.uniform(1, 2, size=4), exponent=3)
    check_vjp_full(power, power_backward, rng.uniform(1, 2, size=4), exponent=-2)


# ---------------------------------------------------------------------------------------------------- the messages


def test_the_message_names_numbers_places_and_seed(rng):
    def backward(dy, cache):
        dx, dw, db = linear_backward(dy, cache)
        dw[1, 2] += 0.5
        return dx, dw, db

    with pytest.raises(GradientError) as caught:
        check_vjp(linear, backward, linear_inputs(rng), seed=3)
    message = str(caught.value)
    assert message.startswith("backward: dw is wrong, dx and db are right\n")
    assert "dw, the gradient of input 1 (w), shape (4, 3):" in message
    assert "<dy, J v>" in message and "<dw, v>" in message
    assert "1 of 12 elements are wrong; the worst at [1, 2]: expected " in message
    assert "    ...\n    ..#\n    ...\n    ...\n" in message
    assert message.endswith("To reproduce: seed=3, eps=6e-06, rtol=1e-06")
    with pytest.raises(GradientError) as again:
        check_vjp(linear, backward, linear_inputs(np.random.default_rng(20150518)), seed=3)
    assert str(again.value) == message


def test_the_message_shows_the_right_numbers():
    """y = x²  with dx = x dy: expected is twice what we got."""
    with pytest.raises(GradientError) as caught:
        check_vjp_full(square, lambda dy, x: x * dy, np.array([1.0, 2.0]), seed=0)
    rng = np.random.default_rng(0)
    dy = rng.choice([-1.0, 1.0], 2) * rng.uniform(0.5, 1.5, 2)
    worst = int(np.argmax(abs(dy * [1, 2])))
    expected, got = 2 * [1, 2][worst] * dy[worst], [1, 2][worst] * dy[worst]
    assert f"the worst at [{worst}]: expected {expected:.6g}"[:-1] in str(caught.value)
    assert f"got {got:.6g}"[:-1] in str(caught.value)


def test_several_wrong_gradients_are_all_explained(rng):
    with pytest.raises(GradientError) as caught:
        check_vjp(linear, lambda dy, cache: tuple(-g for g in linear_backward(dy, cache)), linear_inputs(rng))
    message = str(caught.value)
    assert "dx and dw and db are wrong" in message
    assert message.count("Hint: the sign is wrong everywhere.") == 3


def test_a_large_input_is_not_searched(rng):
    calls = 0

    def counted(x):
        nonlocal calls
        calls += 1
        return square(x)

    with pytest.raises(GradientError, match="check_vjp_full shows"):
        check_vjp(counted, lambda dy, x: dy, rng.normal(size=(40, 50)))
    assert calls == 4


def box(x):
    """A sliding 3 x 3 window, no two of its weights alike, over an N H W C image with a border of zeros."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    y = sum((1 + r + 3 * s) * padded[:, r : r + height, s : s + width] for r in range(3) for s in range(3))
    return y, None


def flipped_box(dy):
    return box(dy[:, ::-1, ::-1])[0][:, ::-1, ::-1]


def test_box_itself(rng):
    check_vjp(box, lambda dy, _: flipped_box(dy), rng.normal(size=(2, 4, 5, 2)))


def zero_border(dy):
    dx = flipped_box(dy)
    dx[:, [0, -1]] = 0
    dx[:, :, [0, -1]] = 0
    return dx


def half_border(dy):
    dx = flipped_box(dy)
    dx[:, [0, -1]] /= 2
    return dx


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda dy: 0 * dy, "the gradient is zero everywhere"),
        (lambda dy: -flipped_box(dy), "the sign is wrong everywhere"),
        (lambda dy: 0.75 * flipped_box(dy), "the gradient is 0.75 times the right one everywhere"),
        (lambda dy: flipped_box(dy) / 2, "1/2 times the right one, and 2 is the length of axis 0 of y"),
        (lambda dy: flipped_box(dy) * 80, "80 times the right one, and 80 is the number of elements of y"),
        (lambda dy: box(dy)[0], "a kernel is used reversed along axes 1 and 2"),
        (lambda dy: box(dy[:, :, ::-1])[0][:, :, ::-1], "a kernel is used reversed along axis 1"),
        (lambda dy: flipped_box(dy[:, ::-1]), "dy is read backwards along axis 1"),
        (lambda dy: flipped_box(np.ones_like(dy)), "it is the right gradient for dy = 1"),
        (lambda dy: flipped_box(np.full_like(dy, dy.mean())), "for the mean of dy in place of dy"),
        (lambda dy: flipped_box(dy)[:, :, ::-1], "right if it were flipped along axis 2"),
        (lambda dy: np.roll(flipped_box(dy), 1, axis=2), "the gradient lies 1 too far along axis 2"),
        (lambda dy: np.roll(flipped_box(dy), -1, axis=1), "the gradient lies 1 too near along axis 1"),
        (zero_border, "only elements at the border of axes 1 and 2 are wrong; look at the padding"),
        (half_border, "look at the padding: the wrong elements are 0.5 times the right ones"),
        (lambda dy: np.arange(80.0).reshape(dy.shape), "the gradient does not depend on dy"),
    ],
)
def test_hints(wrong, hint, rng):
    with pytest.raises(GradientError) as caught:
        check_vjp(box, lambda dy, _: wrong(dy), rng.normal(size=(2, 4, 5, 2)))
    assert hint in str(caught.value)


def test_hints_for_parameters(rng):
    def only(*, dw):
        def backward(dy, cache):
            dx, _, db = linear_backward(dy, cache)
            return dx, dw(dy, cache[0]), db

        return backward

    x, w, b = rng.normal(size=(5, 4)), rng.normal(size=(4, 4)), rng.normal(size=4)
    with pytest.raises(GradientError, match="the gradient would be right with axes 0 and 1 swapped"):
        check_vjp(linear, only(dw=lambda dy, x: dy.T @ x), (x, w, b))
    with pytest.raises(GradientError, match="it is what example 4 contributes: sum over the batch"):
        check_vjp(linear, only(dw=lambda dy, x: x[4:].T @ dy[4:]), (x, w, b))


def test_hint_for_a_missing_mean(rng):
    """Normalisation without its two means: the first one is constant along the batch."""

    def backward(dy, cache):
        y, deviation = cache
        return (dy - y * (dy * y).mean(axis=0)) / deviation

    with pytest.raises(GradientError, match="the error is the same number all along axis 0"):
        check_vjp(normalise, backward, rng.normal(size=(6, 3)))


def test_map_of_a_long_array_is_one_line(rng):
    def backward(dy, x):
        dx = square_backward(dy, x)
        dx[[3, 4]] = 0
        return dx

    with pytest.raises(GradientError, match=r"\n    \.\.\.##\.\.\n"):
        check_vjp_full(square, backward, rng.normal(size=7))


# -------------------------------------------------------------------------- what else a backward pass can do wrong


@CHECKS
@pytest.mark.parametrize(
    "backward, message",
    [
        (lambda dy, c: linear_backward(dy, c)[:2], "returns 2 gradients, but the operator has 3 inputs"),
        (lambda dy, c: dy, "returns 1 gradients, but the operator has 3 inputs"),
        (
            lambda dy, c: (dy @ c[1].T, None, dy.sum(0)),
            r"dw is None, but input w needs a gradient of shape \(4, 3\)",
        ),
        (lambda dy, c: (dy @ c[1].T, 1.0, dy.sum(0)), r"dw must be an array of shape \(4, 3\), got float"),
        (
            lambda dy, c: (dy @ c[1].T, c[0].T @ dy, dy),
            r"db has shape \(5, 3\), .* \(3,\); is a sum over the first 1",
        ),
        (
            lambda dy, c: (dy @ c[1].T, dy.T @ c[0], dy.sum(0)),
            r"dw has shape \(3, 4\), .*; are two axes swapped\?",
        ),
        (lambda dy, c: (dy @ c[1].T, (c[0].T @ dy).ravel(), dy.sum(0)), "a reshape is missing"),
        (
            lambda dy, c: ((dy @ c[1].T).sum(0, keepdims=True), c[0].T @ dy, dy.sum(0)),
            "dx has shape .* broadcasts along axis 0",
        ),
        (
            lambda dy, c: (dy @ c[1].T, c[0].T @ dy, dy.sum(0).astype("f4")),
            "db is float32 although all inputs and dy are float64",
        ),
        (
            lambda dy, c: (dy @ c[1].T, c[0].T @ dy, dy.sum(0) * np.array([1, np.nan, 1])),
            r"db is not finite in 1 of 3 elements; the first such element is \[1\]",
        ),
    ],
)
def test_gradients_that_cannot_be_right(check, backward, message, rng):
    with pytest.raises(GradientError, match=message):
        check(linear, backward, linear_inputs(rng))


@CHECKS
def test_dy_changed_in_place(check, rng):
    def backward(dy, x):
        dy *= 2 * x
        return dy

    with pytest.raises(GradientError, match="backward changes dy in place"):
        check(square, backward, rng.normal(size=4))


@CHECKS
def test_inputs_changed_in_place(check, rng):
    def scale(x):
        x *= 2
        return x, None

    with pytest.raises(GradientError, match="scale changes its input x in place"):
        check(scale, lambda dy, _: 2 * dy, rng.normal(size=4))

    def backward(dy, x):
        x *= 2 * dy
        return x

    with pytest.raises(GradientError, match="backward changes its input x in place"):
        check(square, backward, rng.normal(size=4))


@CHECKS
def test_cache_changed_in_place(check, rng):
    def backward(dy, x_copy):
        x_copy *= 2 * dy
        return x_copy

    with pytest.raises(GradientError, match="different dx: the first pass changed the cache in place"):
        check(lambda x: (x * x, x.copy()), backward, rng.normal(size=4))


@CHECKS
def test_passes_that_draw_random_numbers(check, rng):
    noise = np.random.default_rng(0)
    x = rng.normal(size=4)
    with pytest.raises(GradientError, match=r"two forward passes on the same inputs differ; .* fixed seed"):
        check(lambda x: (x * noise.normal(), None), lambda dy, _: dy, x)
    with pytest.raises(GradientError, match="different dx: it is not deterministic"):
        check(square, lambda dy, x: 2 * x * dy + 1e-12 * noise.normal(), x)
    check(square, lambda dy, x: 2 * x * dy + 1e-12 * noise.normal(), x, nondet_tol=1e-10)


@CHECKS
def test_a_backward_pass_may_return_dy_itself_and_reuse_a_buffer(check, rng):
    check(lambda x, b: (x + b, None), lambda dy, _: (dy, dy), (rng.normal(size=4), rng.normal(size=4)))
    buffer = np.empty(4)
    check(square, lambda dy, x: np.multiply(2 * x, dy, out=buffer), rng.normal(size=4))


# ----------------------------------------------------------------------------------- what cannot be checked at all


@CHECKS
@pytest.mark.parametrize(
    "inputs, error, message",
    [
        (np.ones(3, "f4"), TypeError, r"input 0 \(x\) is float32, .*x.astype\('float64'\)"),
        (np.ones(3, complex), TypeError, "is complex128"),
        ([[1.0, 2.0]], TypeError, "must be a NumPy array, got a list of 2"),
        ((0.5,), TypeError, "must be a NumPy array, got float; pass other arguments as keyword options"),
        (np.array([1.0, np.nan]), ValueError, r"shape \(2,\), must be finite and not empty"),
        (np.ones((2, 0)), ValueError, r"shape \(2, 0\), must be finite and not empty"),
        (np.arange(3), ValueError, "nothing to check, none of the inputs is a float64 array"),
    ],
)
def test_inputs_that_cannot_be_checked(check, inputs, error, message):
    with pytest.raises(error, match=message):
        check(square, square_backward, inputs)


@CHECKS
def test_forward_passes_that_cannot_be_checked(check, rng):
    x = rng.normal(size=3)
    with pytest.raises(TypeError, match=r"must return a pair \(y, cache\), got an array of float64"):
        check(lambda x: x, lambda dy, _: dy, x)
    with pytest.raises(GradientError, match="y is float32 though the inputs are float64"):
        check(lambda x: (x.astype("f4"), None), lambda dy, _: dy, x)
    with pytest.raises(GradientError, match=r"must be finite and not empty; the first such element is \[2\]"):
        check(lambda x: (x * np.array([1, 1, np.inf]), None), lambda dy, _: dy, x)
    with pytest.raises(GradientError, match="the shape of y depends on the values of x"):
        check(lambda x: (x[x <= x0.max()], None), lambda dy, _: dy, x0 := np.sort(x))


# ----------------------------------------------------------------------------------------------------------- kinks


@CHECKS
def test_kinks_are_named(check):
    x = np.array([0.0, 1.0, -2.0, 0.5])
    with pytest.raises(GradientError, match="Hint: 1 of the wrong elements have a kink, as relu has at 0"):
        check(relu, relu_backward, x)
    check(relu, relu_backward, x, skip_kinks=True)


@CHECKS
def test_wrong_gradients_are_found_beside_skipped_kinks(check):
    with pytest.raises(GradientError, match="dx is wrong"):
        check(relu, lambda dy, x: 0.9 * relu_backward(dy, x), np.array([0.0, 1.0, -2.0, 0.5]), skip_kinks=True)


def test_a_kink_everywhere_cannot_be_skipped():
    with pytest.raises(ValueError, match="every output has a kink within eps=6e-06"):
        check_vjp(relu, relu_backward, np.zeros(3), skip_kinks=True)
    with pytest.raises(ValueError, match="every element of input 0 has a kink within eps=6e-06"):
        check_vjp_full(relu, relu_backward, np.zeros(3), skip_kinks=True)


def test_kinks_of_a_large_input_are_named():
    with pytest.raises(GradientError, match="Hint: 500 outputs have a kink"):
        check_vjp(relu, relu_backward, np.r_[np.zeros(500), np.ones(500)])


def test_strong_curvature_is_not_taken_for_a_kink(rng):
    x = rng.normal(size=20)
    with pytest.raises(GradientError) as caught:
        check_vjp(lambda x: (np.exp(5 * x), x), lambda dy, x: 4.9 * dy * np.exp(5 * x), x)
    assert "kink" not in str(caught.value)


def test_spaced_values_avoid_kinks():
    x = spaced((3, 5, 7), seed=4)
    assert x.shape == (3, 5, 7) and x.dtype == np.float64
    ordered = np.sort(x.ravel())
    assert np.allclose(np.diff(ordered), 2 / 105)
    assert abs(x).min() >= 0.5 / 105 - 1e-12 and abs(x).max() <= 1
    assert (np.diff(x, axis=2) > 0).any() and (np.diff(x, axis=2) < 0).any()
    np.testing.assert_array_equal(x, spaced((3, 5, 7), seed=4))
    for seed in range(100):
        check_vjp(relu, relu_backward, spaced((4, 9), seed=seed), seed=seed)


# --------------------------------------------------------------------------------------------------------- adjoint


def test_adjoint_of_a_matrix_and_of_a_sliding_window(rng):
    a = rng.normal(size=(3, 5))
    for _ in range(200):
        check_adjoint(lambda x: a @ x, lambda y: a.T @ y, rng.normal(size=5), rng.normal(size=3))
        shape = (2, 6, 7, 3)
        check_adjoint(lambda x: box(x)[0], flipped_box, rng.normal(size=shape), rng.normal(size=shape))


def test_what_is_not_adjoint_is_refused(rng):
    shape = (2, 4, 5, 2)
    x, y = rng.normal(size=shape), rng.normal(size=shape)
    with pytest.raises(GradientError, match="the two functions are not adjoint\n  <linear"):
        check_adjoint(lambda x: box(x)[0], lambda y: box(y)[0], x, y)
    with pytest.raises(GradientError, match="not adjoint"):
        check_adjoint(lambda x: box(x)[0], lambda y: flipped_box(y) * (1 + 1e-9), x, y)
    with pytest.raises(GradientError, match=r"linear\(-x\) differs from -linear\(x\); has it a bias"):
        check_adjoint(lambda x: box(x)[0] + 1, flipped_box, x, y)
    with pytest.raises(GradientError, match=r"adjoint\(y\) has shape \(2, 3, 5, 2\), expected \(2, 4, 5, 2\)"):
        check_adjoint(lambda x: box(x)[0], lambda y: flipped_box(y)[:, 1:], x, y)
    with pytest.raises(GradientError, match=r"linear\(x\) is not finite"):
        check_adjoint(lambda x: box(x)[0] * np.nan, flipped_box, x, y)


def test_what_cannot_be_checked_for_adjointness(rng):
    x = rng.normal(size=4)
    with pytest.raises(TypeError, match="x must be a float64 array, got an array of float32"):
        check_adjoint(np.negative, np.negative, x.astype("f4"), x)
    with pytest.raises(
        TypeError, match=r"linear\(x\) must return one array, got a tuple of 2; .*lambda x: op\(x\)\[0\]"
    ):
        check_adjoint(lambda x: (x, None), np.negative, x, x)
    with pytest.raises(ValueError, match="all elements of y are equal, which hides errors"):
        check_adjoint(np.negative, np.negative, x, np.ones(4))


def test_examples_in_the_documentation():
    assert doctest.testmod(gradcheck).failed == 0
