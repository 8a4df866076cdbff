"""Optimisers on a GPU do to many parameters at once what they do to each on the CPU."""

import numpy as np
import pytest

from tinyseg import cuda
from tinyseg.optim import SGD, Adam, AdamW, RMSprop, clip_gradients, schedules
from tinyseg.tape import Tensor

SHAPES = [(3, 3, 5, 40), (4096,), (1,), (), (5, 1, 3), (4099,)]  # one piece and less, two and more

OPTIMISERS = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    (Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.01, "weight_decay": 0.3}),
    (RMSprop, {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "momentum": 0.7, "weight_decay": 0.1}),
]


def groups(tensors):
    return [{"params": tensors[:2]}, {"params": tensors[2:], "lr_multiplier": 3.0, "weight_decay": 0.0}]


@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_steps(machine, dtype, kind, options):
    values = [machine.numbers(*shape, dtype=dtype) for shape in SHAPES]
    slopes = [machine.numbers(*shape, dtype=dtype) for shape in SHAPES for _ in range(3)]

    def steps(*arrays):
        tensors = [Tensor(cuda.copied(array), requires_grad=True) for array in arrays[: len(SHAPES)]]
        optimiser = kind(groups(tensors), schedule=schedules.exponential(0.5), **options)
        for step in range(3):
            for index, tensor in enumerate(tensors):
                skipped = (step, index) == (1, 3)
                tensor.grad = None if skipped else arrays[len(SHAPES) + 3 * index + step]
            optimiser.step()
        return [tensor.data for tensor in tensors]

    machine.agree(steps, *values, *slopes, tolerance={np.dtype(np.float32): 1e-4})


def test_arrays_that_are_not_contiguous(machine, dtype):
    def step(value, slope):
        tensor = Tensor(value.transpose(1, 0), requires_grad=True)
        tensor.grad = slope[:, ::2]
        SGD([tensor], lr=0.1, momentum=0.9).step()
        return tensor.data

    machine.agree(step, machine.numbers(4, 6, dtype=dtype), machine.numbers(6, 8, dtype=dtype))


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipping(machine, dtype, max_norm):
    slopes = [machine.numbers(*shape, dtype=dtype) for shape in SHAPES]

    def clipped(*arrays):
        tensors = [Tensor(array, requires_grad=True) for array in arrays]
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.grad = array
        norm = clip_gradients(tensors, max_norm)
        return [tensor.grad for tensor in tensors], norm

    gradients = machine.agree(lambda *arrays: clipped(*arrays)[0], *slopes)
    with cuda.on(machine.devices[0]):
        norm = cuda.to_host(clipped(*map(cuda.to_device, slopes))[1])
    length = np.sqrt(sum((slope.astype(np.float64) ** 2).sum() for slope in slopes))
    np.testing.assert_allclose(norm, length, rtol=1e-12)
    shortened = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients))
    np.testing.assert_allclose(shortened, min(max_norm, length), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_norm_that_is_no_number_shortens_nothing(machine, bad):
    slope = np.array([1.0, bad, 3.0])
    with cuda.on(machine.devices[0]):
        tensor = Tensor(cuda.to_device(slope), requires_grad=True)
        tensor.grad = tensor.data
        norm = cuda.to_host(clip_gradients([tensor], 1.0))
        np.testing.assert_array_equal(cuda.to_host(tensor.grad), slope)
    assert not np.isfinite(norm)


def test_nothing_is_written_beside_a_parameter(machine, host):
    """The launch does not see the arrays of a table, so their guard bands are looked at here."""
    with cuda.on(host()):
        tensor = Tensor(cuda.to_device(np.ones(4099)), requires_grad=True)
        tensor.grad = cuda.to_device(np.ones(4099))
        optimiser = Adam([tensor], lr=0.1)
        clip_gradients([tensor], 1.0)
        optimiser.step()
        for array in (tensor.data, tensor.grad, optimiser.kept["mean"][0], optimiser.kept["square"][0]):
            assert array.block.is_intact()  # type: ignore[attr-defined]
            assert np.isfinite(cuda.to_host(array)).all()


def test_parameters_of_several_types(machine):
    with cuda.on(machine.devices[0]):
        tensors = [
            Tensor(cuda.to_device(np.ones(3, dtype)), requires_grad=True) for dtype in (np.float32, np.float64)
        ]
        for tensor in tensors:
            tensor.grad = tensor.data
        optimiser = SGD(tensors, lr=0.1)
        for change in (optimiser.step, lambda: clip_gradients(tensors, 1.0)):
            with pytest.raises(
                TypeError, match="must be of one type, got float32 and float64; convert the network"
            ):
                change()


def test_a_recorded_update_goes_on_after_one_of_fewer_parameters(machine):
    def updated(recorded):
        tensors = [Tensor(cuda.to_device(np.full(3, 2.0)), requires_grad=True) for _ in range(2)]
        slopes = [cuda.to_device(np.full(3, slope)) for slope in (1.0, 3.0)]
        optimiser = Adam(tensors, lr=0.1, schedule=schedules.exponential(0.5))

        def step(count, update):
            for tensor, slope, number in zip(tensors, slopes, range(2), strict=True):
                tensor.grad = slope if number < count else None
            optimiser.advance()
            update()

        step(2, optimiser.apply)
        again = optimiser.apply
        if recorded:
            with cuda.record() as graph:
                optimiser.apply()
            again = graph.launch
        step(1, optimiser.apply)
        cuda.to_device(np.zeros(2))  # takes the place of what is no longer used
        step(2, again)
        return [cuda.to_host(tensor.data).tolist() for tensor in tensors]

    with cuda.on(machine.devices[0]):
        assert updated(True) == updated(False)


def test_states_move_between_host_and_gpu(machine):
    values, slope = machine.numbers(3, 7), machine.numbers(3, 7)

    def after(device_first, device_then):
        def tensor(values, on_gpu):
            place = cuda.to_device if on_gpu else np.array
            made = Tensor(place(values), requires_grad=True)
            made.grad = place(slope)
            return made

        first = tensor(values, device_first)
        optimiser = AdamW([first], lr=0.1)
        optimiser.step()
        then = tensor(cuda.to_host(first.data), device_then)
        resumed = AdamW([then], lr=0.1)
        resumed.load_state_dict(optimiser.state_dict())
        resumed.step()
        return cuda.to_host(then.data)

    with cuda.on(machine.devices[0]):
        expected = after(False, False)
        for places in ((True, True), (True, False), (False, True)):
            np.testing.assert_allclose(after(*places), expected, rtol=1e-12)


def test_a_parameter_that_was_moved_too_late(machine):
    tensor = Tensor(np.ones(3), requires_grad=True)
    optimiser = SGD([tensor], lr=0.1, momentum=0.9)
    with cuda.on(machine.devices[0]):
        tensor.data, tensor.grad = cuda.to_device(np.ones(3)), cuda.to_device(np.ones(3))
        with pytest.raises(TypeError, match=r"parameter 0 is partly on the CPU .* before the optimiser is made"):
            optimiser.step()
