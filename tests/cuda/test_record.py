"""CUDA graphs: what is recorded runs at each launch, on what is written into its arrays, and not before."""

import numpy as np
import pytest

from tinyseg import cuda, functional, nn, ops
from tinyseg.cuda import CudaError
from tinyseg.optim import SGD, clip_gradients
from tinyseg.tape import Tensor


@pytest.fixture
def device(machine):
    with cuda.on(machine.devices[0]):
        yield machine.devices[0]


def test_a_graph_runs_at_its_launches(device):
    x = cuda.to_device(np.array([1.0, -2.0]))
    ops.relu(x)  # compiles
    with cuda.record() as graph:
        y, _ = ops.relu(x)
    cuda.write(x, np.array([-3.0, 4.0]))
    graph.launch()
    np.testing.assert_array_equal(cuda.to_host(y), [0, 4])
    cuda.write(x, cuda.to_device(np.array([5.0, 6.0])))
    graph.launch()
    np.testing.assert_array_equal(cuda.to_host(y), [5, 6])


def test_an_array_of_the_host_is_a_constant_of_the_graph(device):
    x = cuda.to_device(np.array([1.0, -2.0]))
    ops.mul(x, x)
    with cuda.record() as graph:
        table = np.array([10.0, 100.0])
        y, _ = ops.mul(x, cuda.constant(table))
        table[:] = 0
    graph.launch()
    np.testing.assert_array_equal(cuda.to_host(y), [10, -200])


def test_constants_do_not_lie_where_other_arrays_were(device):
    x = cuda.to_device(np.ones(64))
    ops.mul(x, x)
    with cuda.record() as graph:
        ops.mul(x, x)  # gone at once: its memory is free for the next array, and each launch writes to it
        y, _ = ops.mul(x, cuda.constant(np.full(64, 7.0)))
    for _ in range(2):
        graph.launch()
        np.testing.assert_array_equal(cuda.to_host(y), np.full(64, 7.0))


def test_nothing_is_read_while_recording(device):
    x = cuda.to_device(np.ones(2))
    ops.relu(x)
    with pytest.raises(CudaError, match="needed on the host while kernels are recorded"), cuda.record():
        cuda.to_host(ops.relu(x)[0])
    np.testing.assert_array_equal(cuda.to_host(ops.relu(x)[0]), [1, 1])  # and all goes on as before


def test_numbers_of_the_host_are_not_recorded(device):
    """A GPU would read them again at each launch, from where they no longer are."""
    x = cuda.to_device(np.ones(2))
    with pytest.raises(CudaError, match="written before a graph is launched"), cuda.record():
        cuda.write(x, np.zeros(2))


def test_an_upload_is_there_once_it_is_finished(device):
    first, second = (cuda.start_upload(np.full(5, value)) for value in (1.0, 2.0))
    cuda.finish_uploads()
    np.testing.assert_array_equal(cuda.to_host(first), np.full(5, 1.0))
    np.testing.assert_array_equal(cuda.to_host(second), np.full(5, 2.0))


def test_arrays_that_cannot_be_overwritten(device):
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        cuda.write(cuda.to_device(np.ones(2)), np.ones(3))
    with pytest.raises(TypeError, match="one type, got float64 and float32"):
        cuda.write(cuda.to_device(np.ones(2)), cuda.to_device(np.ones(2, np.float32)))
    with pytest.raises(ValueError, match="must be C-contiguous"):
        cuda.write(cuda.to_device(np.ones((2, 2))).transpose(1, 0), np.ones((2, 2)))


def test_a_graph_goes_on_with_weights_that_are_loaded(device, rng):
    net, x = nn.Conv2d(2, 3, 1, rng=rng).to("cuda"), cuda.to_device(rng.standard_normal((1, 2, 2, 2)))
    net.astype(np.float64)
    net(x)
    with cuda.record() as graph:
        y = net(x)
    net.load_state_dict({"weight": np.zeros((1, 1, 2, 3)), "bias": np.array([1.0, 2.0, 3.0])})
    graph.launch()
    np.testing.assert_array_equal(cuda.to_host(y.data), np.broadcast_to([1, 2, 3], (1, 2, 2, 3)))


def network(rng):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, rng=rng), nn.BatchNorm2d(4, relu=True), nn.Dropout(0.5, rng=rng),
        nn.Conv2d(4, 3, 1, rng=rng),
    )  # fmt: skip


def test_a_recorded_training_step_does_what_the_step_does(device, rng):
    """Forward, backward, clipping and update: weights, running averages, masks and losses are the same bits."""
    images = rng.standard_normal((3, 2, 5, 6, 2)).astype(np.float32)
    labels = rng.integers(0, 3, (3, 2, 5, 6))

    def run(recorded):
        net = network(np.random.default_rng(1)).to("cuda")
        optimiser = SGD(list(net.parameters()), lr=0.1, momentum=0.9)
        x, target = cuda.to_device(images[0]), cuda.to_device(labels[0])

        def step():
            loss = functional.cross_entropy(net(Tensor(x)), target)
            loss.backward()
            return loss, clip_gradients(optimiser.parameters, 0.5)

        found, graph = [], None
        for image, label in zip(images, labels, strict=True):
            cuda.write(x, image)
            cuda.write(target, label)
            if graph is None:
                optimiser.zero_grad()
                loss, norm = step()
                optimiser.advance()
                optimiser.apply()
                if recorded:
                    optimiser.zero_grad()
            else:
                optimiser.advance()
                graph.launch()
            found += [cuda.to_host(loss.data), cuda.to_host(norm)]
            if recorded and graph is None:
                with cuda.record() as graph:
                    loss, norm = step()
                    optimiser.apply()
        return net.state_dict() | optimiser.state_dict(), found

    (state, losses), (recorded, recorded_losses) = run(False), run(True)
    assert losses == recorded_losses
    assert len(set(map(float, losses))) == 6
    assert {name: array.tobytes() for name, array in state.items()} == {
        name: array.tobytes() for name, array in recorded.items()
    }
    assert state["2.calls"] == 3
