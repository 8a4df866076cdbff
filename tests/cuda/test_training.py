"""Training on a GPU: the trainer, its loader, checkpoints and validation, with and without a CUDA graph."""

import itertools
import json
import signal
import sys

import numpy as np
import pytest

import tinyseg
from tinyseg import cuda
from tinyseg.data import Batch
from tinyseg.train import checkpoint, config, feed, train
from tinyseg.train.errors import SettingError
from tinyseg.train.reporters import Reporter

TINY = (
    "data.train.length=6",
    "data.val.length=2",
    "model.name=unet",  # unpadded, with dropout: labels are cut to the middle, masks differ from step to step
    "model.base=2",
    "model.depth=1",
    "data.size=24,24",
    "optim.clip=0.5",
    "train.batch=2",
    "train.epochs=2",
    "train.pictures=1",
)


def settings(*changes):
    return config.override(config.preset("shapes"), [*TINY, *changes])


def outcome(folder):
    """The last checkpoint's arrays, and the history without times and memory."""
    last = checkpoint.load(folder / "last.safetensors")
    assert last.optimiser is not None
    state = {**last.model, **{f"optimiser/{name}": value for name, value in last.optimiser.items()}}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return state, [[row["loss"], row["val_loss"], row["mean_iou"]] for row in rows]


def bits(state):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in state.items()}


class StopsAt(Reporter):
    def __init__(self, step):
        self.step = step

    def run_started(self, trainer):
        self.trainer = trainer

    def step_done(self, step):
        if self.trainer.progress.step == self.step:
            self.trainer.stop.signal = signal.SIGTERM


@pytest.fixture
def device(machine):
    with cuda.on(machine.devices[0]):
        yield machine.devices[0]


def test_a_run_on_the_gpu_is_the_run_on_the_cpu(tmp_path, device):
    with tinyseg.use("numpy"):
        train(settings(), tmp_path / "cpu", reporters=[])
    train(settings("train.device=cuda"), tmp_path / "gpu", reporters=[])
    (cpu, cpu_rows), (gpu, gpu_rows) = outcome(tmp_path / "cpu"), outcome(tmp_path / "gpu")
    np.testing.assert_allclose(gpu_rows, cpu_rows, rtol=1e-4)
    assert cpu.keys() == gpu.keys()
    for name, array in cpu.items():
        np.testing.assert_allclose(gpu[name], array, rtol=1e-3, atol=1e-5, err_msg=name)
    assert {int(array) for name, array in gpu.items() if name.endswith("calls")} == {6}


NOISY = (  # in its loss, at each step; a large network, for one epoch of two steps
    "model.name=gscnn_resnet50",
    "model.backbone=resnet18",
    "model.width=0.015625",
    "data.size=17,18",
    "data.train.length=4",
    "data.val.length=1",
    "train.epochs=1",
)


@pytest.mark.parametrize("network", [(), NOISY], ids=["unet", "gscnn"])
def test_a_recorded_run_gives_the_same_bits(tmp_path, device, network):
    for name, changes in (("steps", ()), ("graph", ("train.cuda_graph=true",))):
        chosen = settings("train.device=cuda", "optim.name=sgd", *changes)
        train(config.override(chosen, network), tmp_path / name, reporters=[])
    (steps, rows), (graph, graph_rows) = outcome(tmp_path / "steps"), outcome(tmp_path / "graph")
    assert bits(steps) == bits(graph)
    assert rows == graph_rows


def test_activations_in_bfloat16(tmp_path, device, bfloat16):
    """Weights are trained as float32, near to where they go without mixed precision; and it can be recorded."""
    runs = {"whole": ["float32"], "mixed": ["bfloat16"], "graph": ["bfloat16", "train.cuda_graph=true"]}
    for name, (precision, *changes) in runs.items():
        chosen = settings("train.device=cuda", f"train.precision={precision}", *changes)
        train(chosen, tmp_path / name, reporters=[])
    (_, whole), (mixed, mixed_rows), (graph, _) = (outcome(tmp_path / name) for name in runs)
    assert {array.dtype for name, array in mixed.items() if name.endswith("weight")} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.array(mixed_rows)[:, :2], np.array(whole)[:, :2], rtol=0.03)
    assert not np.array_equal(mixed_rows, whole)
    assert bits(mixed) == bits(graph)


@pytest.mark.parametrize("graph", ["false", "true"])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, device, graph):
    chosen = settings("train.device=cuda", f"train.cuda_graph={graph}")
    train(chosen, tmp_path / "whole", reporters=[])
    stopped = train(chosen, tmp_path / "parts", reporters=[StopsAt(4)])
    assert stopped.epochs == 1
    train(out=tmp_path / "parts", resume=True, reporters=[])
    (whole, rows), (parts, part_rows) = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert bits(whole) == bits(parts)
    assert rows == part_rows


def test_a_run_can_go_on_elsewhere(tmp_path, device):
    """A checkpoint knows nothing of the device."""
    train(settings("train.device=cuda", "train.epochs=1"), tmp_path / "run", reporters=[])
    with tinyseg.use("numpy"):
        result = train(settings(), tmp_path / "run", resume=True, reporters=[])
    assert result.epochs == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.cuda_graph=true"], "add --device cuda"),
        (["train.precision=tf32"], "add --device cuda, or for the CPU .* --set train.precision=float32"),
        (["train.device=cuda", "train.cuda_graph=true", "train.accumulate=2"], "train.accumulate is 2"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, device, changes, words):
    with pytest.raises(SettingError, match=words):
        train(settings(*changes), tmp_path / "run", reporters=[])


def test_mixed_precision_without_its_package(tmp_path, device, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(SettingError, match=r"train.precision: bfloat16 .* `pip install ml_dtypes`"):
        train(settings("train.device=cuda", "train.precision=bfloat16"), tmp_path / "run", reporters=[])
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- batches ahead of time


def batches(count, log):
    for number in range(count):
        log.append(f"made {number}")
        full = np.full((1, 2, 2, 1), number, np.float32)
        yield Batch(full, np.full((1, 2, 2), number), None, (str(number),))


def test_batches_arrive_in_order_and_whole(device):
    log = []
    for number, batch in enumerate(feed.ahead(batches(4, log))):
        log.append(f"used {number}")
        assert batch.names == (str(number),)
        assert batch.weights is None
        np.testing.assert_array_equal(cuda.to_host(batch.images), np.full((1, 2, 2, 1), number))
        np.testing.assert_array_equal(cuda.to_host(batch.labels), np.full((1, 2, 2), number))
    assert log == ["made 0", "made 1", "used 0", "made 2", "used 1", "made 3", "used 2", "used 3"]


def test_leaving_early_ends_the_source(device):
    source = batches(5, [])
    for _ in itertools.islice(feeding := feed.ahead(source), 2):
        pass
    feeding.close()
    assert next(source, None) is None
