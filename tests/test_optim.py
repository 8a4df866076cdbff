"""Optimisers against PyTorch's, by hand, and across an interruption; schedules by their values; clipping."""

import math

import numpy as np
import pytest

from tinyseg import functional, optim
from tinyseg.optim import SGD, Adam, AdamW, RMSprop, schedules
from tinyseg.tape import Tensor

OPTIMISERS = [
    pytest.param(SGD, {"lr": 0.1}, id="SGD"),
    pytest.param(SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02}, id="momentum"),
    pytest.param(SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}, id="nesterov"),
    pytest.param(Adam, {"lr": 0.01}, id="Adam"),
    pytest.param(Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}, id="Adam-decay"),
    pytest.param(AdamW, {"lr": 0.01, "weight_decay": 0.3}, id="AdamW"),
    pytest.param(RMSprop, {"lr": 0.01}, id="RMSprop"),
    pytest.param(
        RMSprop, {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "momentum": 0.7, "weight_decay": 0.1}, id="RMSprop-all"
    ),
]

SHAPES = [(3, 2, 5), (7,), ()]


def parameters(rng, dtype=np.float64):
    return [Tensor(np.array(rng.standard_normal(shape), dtype), requires_grad=True) for shape in SHAPES]


def slopes(values):
    """The gradients of a bowl that is steeper in some directions than in others, without its minimum at 0."""
    return [np.cos(np.arange(value.size)).reshape(value.shape) * 0.3 + 2 * np.sin(value) for value in values]


def descend(optimiser, tensors, steps, skip=()):
    """Steps down the bowl. In the step numbers listed in `skip` the last parameter gets no gradient."""
    for step in range(steps):
        optimiser.zero_grad()
        for tensor, slope in zip(tensors, slopes([t.data for t in tensors]), strict=True):
            tensor.grad = slope.astype(tensor.data.dtype)
        if step in skip:
            tensors[-1].grad = None
        optimiser.step()


@pytest.mark.oracle
@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_agrees_with_torch_over_many_steps(backend, rng, kind, options):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    tensors = parameters(rng)
    theirs = [torch.tensor(tensor.data.copy(), requires_grad=True) for tensor in tensors]
    rival = getattr(torch.optim, kind.__name__)(theirs, **options)
    ours = kind(tensors, **options)
    skip = {3, 4, 17}

    descend(ours, tensors, 150, skip)
    for step in range(150):
        for tensor, slope in zip(theirs, slopes([t.detach().numpy() for t in theirs]), strict=True):
            tensor.grad = torch.tensor(slope)
        if step in skip:
            theirs[-1].grad = None
        rival.step()

    for tensor, other in zip(tensors, theirs, strict=True):
        np.testing.assert_allclose(tensor.data, other.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.oracle
def test_groups_agree_with_torch(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    tensors = parameters(rng)
    theirs = [torch.tensor(tensor.data.copy(), requires_grad=True) for tensor in tensors]
    ours = SGD(
        [{"params": tensors[:2]}, {"params": tensors[2:], "lr_multiplier": 10, "weight_decay": 0.0}],
        lr=0.01,
        momentum=0.9,
        weight_decay=0.1,
    )
    rival = torch.optim.SGD(
        [{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.1, "weight_decay": 0.0}],
        lr=0.01,
        momentum=0.9,
        weight_decay=0.1,
    )
    descend(ours, tensors, 20)
    for _ in range(20):
        for tensor, slope in zip(theirs, slopes([t.detach().numpy() for t in theirs]), strict=True):
            tensor.grad = torch.tensor(slope)
        rival.step()
    for tensor, other in zip(tensors, theirs, strict=True):
        np.testing.assert_allclose(tensor.data, other.detach().numpy(), rtol=1e-12)


def test_momentum_by_hand(backend):
    p = Tensor(np.array([1.0]), requires_grad=True)
    optimiser = SGD([p], lr=0.5, momentum=0.5)
    p.grad = np.array([1.0])
    optimiser.step()  # v = 1, p = 1 - 0.5
    assert p.data[0] == 0.5
    optimiser.step()  # v = 0.5 + 1, p = 0.5 - 0.75
    assert p.data[0] == -0.25


def test_first_step_of_adam_has_the_length_of_the_learning_rate(backend):
    """m / (1 - beta1) = g and v / (1 - beta2) = g^2 at t = 1, whatever the gradient."""
    p = Tensor(np.array([3.0, 3.0, 3.0]), requires_grad=True)
    p.grad = np.array([1e-3, -2.0, 500.0])
    Adam([p], lr=0.25, eps=0.0).step()
    np.testing.assert_allclose(p.data, [2.75, 3.25, 2.75], rtol=1e-12)


@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_float32_stays_float32_and_follows_float64(backend, rng, kind, options):
    exact, single = parameters(rng), []
    for tensor in exact:
        single.append(Tensor(tensor.data.astype(np.float32), requires_grad=True))
    descend(kind(exact, **options), exact, 5)
    descend(kind(single, **options), single, 5)
    for tensor, other in zip(single, exact, strict=True):
        assert tensor.data.dtype == np.float32
        np.testing.assert_allclose(tensor.data, other.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_resumes_to_the_same_bits(rng, kind, options):
    options = options | {"schedule": schedules.product(schedules.warm_up(3), schedules.poly(20))}
    whole = parameters(rng, np.float32)
    start = [tensor.data.copy() for tensor in whole]
    descend(kind(whole, **options), whole, 15, skip={2})

    first = [Tensor(data.copy(), requires_grad=True) for data in start]
    optimiser = kind(first, **options)
    descend(optimiser, first, 6, skip={2})
    state = optimiser.state_dict()
    kept = {name: array.copy() for name, array in state.items()}
    second = [Tensor(tensor.data.copy(), requires_grad=True) for tensor in first]
    resumed = kind(second, **options)
    resumed.load_state_dict(state)
    descend(resumed, second, 9)

    for tensor, other in zip(second, whole, strict=True):
        np.testing.assert_array_equal(tensor.data, other.data)
    for name, array in kept.items():
        np.testing.assert_array_equal(state[name], array, err_msg=f"{name} of a saved state changed afterwards")


def test_parameters_that_are_not_contiguous(backend, rng):
    data = rng.standard_normal((4, 6))
    tensors = [Tensor(data.T, requires_grad=True), Tensor(data[::2, 1:], requires_grad=True)]
    plain = [Tensor(np.array(tensor.data, order="C"), requires_grad=True) for tensor in tensors]
    for group in (tensors, plain):
        optimiser = Adam(group, lr=0.1)
        for _ in range(3):
            group[0].grad = (np.sin(group[0].data.T)).T  # gradients in the other order too
            group[1].grad = np.sin(group[1].data)
            optimiser.step()
    for tensor, other in zip(tensors, plain, strict=True):
        np.testing.assert_allclose(tensor.data, other.data, rtol=1e-13)


def test_accumulates_several_backward_passes():
    """Two half batches, each loss halved, give the step of the whole batch."""
    rng = np.random.default_rng(3)
    x, start = rng.standard_normal((6, 4)), rng.standard_normal((4, 2))

    def loss(w, rows):
        y = functional.tanh(functional.linear(rows, w))
        return functional.mul(y, y), 1 / len(x)

    whole, halves = (Tensor(start.copy(), requires_grad=True) for _ in range(2))
    for w, batches in ((whole, [x]), (halves, [x[:3], x[3:]])):
        optimiser = SGD([w], lr=0.1)
        for rows in batches:
            value, scale = loss(w, rows)
            value.backward(np.full(value.shape, scale))
        optimiser.step()
    np.testing.assert_allclose(halves.data, whole.data, rtol=1e-13)
    assert not np.allclose(whole.data, start)


# ------------------------------------------------------------------------------------------------------ schedules


def test_schedules_by_hand():
    assert [schedules.poly(4, power=2)(n) for n in (0, 1, 2, 4, 9)] == [1, 0.5625, 0.25, 0, 0]
    assert [schedules.step(2, gamma=0.5)(n) for n in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert [schedules.step([4, 1], gamma=0.5)(n) for n in range(6)] == [1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [schedules.exponential(0.25, every=2)(n) for n in range(4)] == [1, 0.5, 0.25, 0.125]
    np.testing.assert_allclose(
        [schedules.cosine(4, floor=0.2)(n) for n in (0, 1, 2, 4, 7)],
        [1, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2, 0.2],
    )
    assert [schedules.warm_up(4)(n) for n in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [schedules.warm_up(2, start=0.5)(n) for n in range(3)] == [0.75, 1, 1]
    both = schedules.product(schedules.warm_up(2), schedules.step(2, gamma=0.5))
    assert [both(n) for n in range(4)] == [0.5, 1, 0.5, 0.5]


def test_the_schedule_sets_the_learning_rate_of_each_step():
    p = Tensor(np.array([0.0]), requires_grad=True)
    optimiser = SGD([p], lr=2.0, schedule=schedules.step([2], gamma=0.25))
    taken = []
    for _ in range(4):
        before = p.data[0]
        p.grad = np.array([1.0])
        taken.append(optimiser.current_lr)
        optimiser.step()
        assert before - p.data[0] == taken[-1]
    assert taken == [2.0, 2.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.poly(0), "poly: total must be more than 0, got 0"),
        (lambda: schedules.step(0), "step: every must be more than 0"),
        (lambda: schedules.exponential(-0.5), "exponential: gamma"),
        (lambda: schedules.warm_up(0), "warm_up: steps"),
    ],
)
def test_schedules_refuse_nonsense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------- clipping


def test_clips_all_gradients_by_their_common_norm():
    a, b, without = (Tensor(np.zeros(2), requires_grad=True) for _ in range(3))
    shared = np.array([3.0, 0.0])
    a.grad, b.grad = shared, np.array([0.0, 4.0])
    assert optim.clip_gradients([a, b, without], max_norm=1.0) == 5.0
    np.testing.assert_allclose(a.grad, [0.6, 0.0])
    np.testing.assert_allclose(b.grad, [0.0, 0.8])
    assert without.grad is None
    np.testing.assert_array_equal(shared, [3.0, 0.0])  # it may belong to others


def test_does_not_lengthen_short_gradients():
    a = Tensor(np.zeros(2, np.float32), requires_grad=True)
    a.grad = np.array([3.0, 4.0], np.float32)
    assert optim.clip_gradients([a], max_norm=5.5) == 5.0
    np.testing.assert_array_equal(a.grad, [3.0, 4.0])
    assert optim.clip_gradients([a], max_norm=2.5) == 5.0
    np.testing.assert_array_equal(a.grad, np.array([1.5, 2.0], np.float32))
    assert a.grad.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_reports_a_norm_that_is_not_finite(bad):
    a = Tensor(np.zeros(2), requires_grad=True)
    a.grad = np.array([1.0, bad])
    assert not math.isfinite(optim.clip_gradients([a], max_norm=1.0))
    np.testing.assert_array_equal(a.grad, [1.0, bad])


# --------------------------------------------------------------------------------------------------------- errors


def tensor(shape=(2,)):
    return Tensor(np.zeros(shape), requires_grad=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD([tensor()], lr=0), ValueError, "SGD: lr must be more than 0, got 0"),
        (lambda: Adam([tensor()], lr=-1e-3), ValueError, "Adam: lr must be more than 0"),
        (lambda: SGD([tensor()], lr=float("nan")), ValueError, "lr must be more than 0, got nan"),
        (lambda: SGD([], lr=1), ValueError, "no parameters to optimise.*generator"),
        (lambda: SGD(iter([]), lr=1), ValueError, "no parameters"),
        (lambda: SGD(tensor(), lr=1), TypeError, "must be a list"),
        (lambda: SGD([np.zeros(2)], lr=1), TypeError, "must be tensors, got ndarray"),
        (lambda: SGD([{"params": [tensor()]}, tensor()], lr=1), TypeError, "cannot be mixed"),
        (lambda: SGD([{"params": [tensor()], "lr": 2}], lr=1), ValueError, "a group has the keys.*got"),
        (lambda: SGD([{"params": [tensor()], "weight_decay": -1}], lr=1), ValueError, "must be 0 or more"),
        (lambda: SGD([tensor()] * 2, lr=1), ValueError, "listed twice"),
        (lambda: SGD([tensor()], lr=1, momentum=1.0), ValueError, "momentum must be at least 0 and less than 1"),
        (lambda: SGD([tensor()], lr=1, nesterov=True), ValueError, "set momentum"),
        (lambda: AdamW([tensor()], betas=(0.9, 1.0)), ValueError, "AdamW: beta2 must be"),
        (lambda: RMSprop([tensor()], alpha=-0.1), ValueError, "RMSprop: alpha must be"),
        (lambda: optim.clip_gradients([tensor()], 0), ValueError, "max_norm must be more than 0"),
    ],
)
def test_construction_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_step_errors():
    p = tensor()
    optimiser = SGD([p], lr=1)
    with pytest.raises(RuntimeError, match=r"no parameter has a gradient; call loss\.backward\(\) first"):
        optimiser.step()
    p.grad = np.zeros(3)
    with pytest.raises(ValueError, match=r"parameter 0 has shape \(2,\), its gradient \(3,\)"):
        optimiser.step()
    p.grad = np.zeros(2, np.float32)
    with pytest.raises(TypeError, match="parameter 0 is float64, its gradient float32"):
        optimiser.step()


def test_a_state_that_does_not_fit_is_refused_as_a_whole():
    optimiser = Adam([tensor((2, 3)), tensor()], lr=0.1)
    state = optimiser.state_dict()
    del state["mean.1"]
    state["square.0"] = np.ones((3, 2))
    state["velocity.0"] = np.ones(2)
    state["lr"] = np.array(7.0)
    with pytest.raises(ValueError, match="another optimiser or another network") as caught:
        optimiser.load_state_dict(state)
    assert "missing: mean.1 (2,)" in str(caught.value)
    assert "unexpected: velocity.0 (2,)" in str(caught.value)
    assert "shape: square.0 is (2, 3) here and (3, 2) in the state" in str(caught.value)
    assert optimiser.lr == 0.1
