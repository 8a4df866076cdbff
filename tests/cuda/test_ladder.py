"""The ladder of convolution in benchmarks/: every rung is right, and compiles for real GPUs."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tinyseg import cuda
from tinyseg.cuda import nvrtc

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "ladders" / "conv2d_cuda.py"
_spec = importlib.util.spec_from_file_location("conv2d_cuda", PATH)
ladder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ladder)


@pytest.mark.parametrize("rung", ladder.RUNGS, ids=lambda rung: rung.name)
def test_rung(machine, rung):
    if rung.dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy has bfloat16 by the package ml_dtypes, not installed")
    x = machine.numbers(2, 7, 6, 16, dtype=np.float32)
    w = machine.numbers(3, 3, 16, 80, dtype=np.float32)
    for device in machine.devices:
        with cuda.on(device):
            ladder.validate(rung, x, w)


def test_a_wrong_version_is_noticed(machine):
    x, w = machine.numbers(1, 3, 4, 4, dtype=np.float32), machine.numbers(3, 3, 4, 4, dtype=np.float32)
    shifted = ladder.RUNGS[0]._replace(run=lambda x, w: ladder.RUNGS[0].run(x, cuda.contiguous(w[:, ::-1])))
    with cuda.on(machine.devices[0]), pytest.raises(AssertionError, match="1 naive is off by"):
        ladder.validate(shifted, x, w)


def test_the_time_is_that_of_calls_in_a_queue(monkeypatch):
    clock, done = [0.0], []

    class Event:
        def record(self):
            self.at = clock[0]

        def synchronize(self):
            done.append("waited")

    def run(x, w):
        clock[0] += 100 if len(done) < 2 else x
        done.append(x)

    cupy = types.SimpleNamespace(Event=Event, get_elapsed_time=lambda start, end: end.at - start.at)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cupy))
    rung = ladder.RUNGS[0]._replace(run=run)
    assert ladder.milliseconds(rung, [1.0, 5.0, 6.0], None, calls=4) == 5.5  # of 6, 1, 5 and 6
    assert done == [1.0, 5.0, 6.0, 1.0, 5.0, 6.0, "waited"]


@pytest.mark.parametrize("capability", [75, 90])
def test_compiles_without_local_memory(capability):
    try:
        nvrtc.version()
    except cuda.CudaError as error:
        pytest.skip(f"kernels are not compiled for GPUs: {error}")
    (configuration,) = ladder._cuda.configurations()
    log = nvrtc.compile(ladder._cuda.source(configuration), PATH.name, capability).log
    assert log.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == len(ladder._cuda.kernels)
